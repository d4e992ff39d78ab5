"""The teacher's: plausible mistakes of lab 02, as changes of the project's own functions. labs/check.py names them.

{task: [("This is what comes out ...", text of the function, text in its place), ...]}
SOLUTIONS: of the piece that the project does not have.
"""

SOLUTIONS = {"share_drawn": """
def share_drawn(presence, probabilities):
    return probabilities @ presence
"""}
MISTAKES = {
    "presence": [
        ("with the numbers of pixels in place of true and false", " > 0", ""),
        ("without the classes beyond the largest label of the image", ", minlength=len(self.classes)", ""),
        ("when a single pixel is not enough", "> 0", "> 1"),
        ("when class 0 is left out, as if it were the background", "return np.bincount",
         "return np.arange(len(self.classes)) * np.bincount")],
    "sampling_probabilities": [
        ("with f_k^(-1) in place of f_k^(-1/2)", "-0.5", "-1.0"),
        ("with f_k^(1/2): images of common classes are favoured", "-0.5", "0.5"),
        ("when p does not add up to 1", "p / p.sum()", "p"),
        ("with the commonest class of the image in place of the rarest", "np.where(presence, f, 1.0).min(axis=1)",
         "(presence * f).max(axis=1).clip(0.01)"),
        ("with the product over all classes of the image", ".min(axis=1)", ".prod(axis=1)"),
        ("with the rarest class of the whole dataset, also where the image does not contain it",
         "np.where(presence, f, 1.0)", "(f + 0 * presence).clip(0.01)"),
        ("when `if unknown` takes class 0 for None", "if unknown is not None", "if unknown"),
        ("when the unknown class counts like the others", "presence[:, unknown] = False", "pass"),
        ("when the unknown class is crossed out in the caller's table, too", "np.array(presence, dtype=bool)",
         "np.asarray(presence, dtype=bool)"),
        ("with the share of the classes in an image in place of the share of the images with a class",
         "presence.mean(axis=0)", "presence.mean(axis=1)[:, None]")],
    "draw_batches": [
        ("without the rank: every GPU draws the same images", " + self.rank * self.per_rank", ""),
        ("when the epoch is that of the step's first draw: a step can begin in one epoch and end in the next",
         "if n // N != epoch:                                           # N draws are made at once\n"
         "                epoch = n // N",
         "if first // N != epoch:\n                epoch = first // N"),
        ("with the same draws in every epoch", "(self.seed, epoch, N)", "(self.seed, 0, N)"),
        ("without the seed", "(self.seed, epoch, N)", "(epoch, N)"),
        ("without p: all images alike", ", p=self.p", ""),
        ("without replacement: every image once an epoch, whatever its p", "p=self.p", "p=self.p, replace=False"),
        ("when a resumed run begins with the draws of step 0", "for step in self.steps",
         "for step in range(len(self.steps))"),
        ("when all images of a step get the same augmentation", "epoch, n % N))", "epoch, first % N))")],
    "share_drawn": [
        ("with every image alike, as without rare-class sampling", "probabilities @ presence", "presence.mean(axis=0)"),
        ("when the shares are made to add up to 1: an image has many classes", "probabilities @ presence",
         "probabilities @ presence / (probabilities @ presence).sum()"),
        ("when each image counts for one of its classes in equal parts", "probabilities @ presence",
         "probabilities @ (presence / presence.sum(axis=1, keepdims=True))"),
        ("with p as weights of f_c, the mean over the images that have the class", "probabilities @ presence",
         "probabilities @ presence / presence.sum(axis=0)")]}
