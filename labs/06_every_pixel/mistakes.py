"""The teacher's: plausible mistakes of lab 06, as changes of the project's own functions. labs/check.py names them.

{task: [("This is what comes out ...", text of the function, text in its place), ...]}
SOLUTIONS: of the piece that the project does not have.
"""

SOLUTIONS = {"best_answer": """
def best_answer(num_classes, gamma, smoothing):
    p = torch.linspace(1e-4, 1 - 1e-4, 100_001, dtype=torch.float64)
    other = torch.log((1 - p) / num_classes)
    L_D = -(1 - smoothing) * losses.focal_log(torch.log(p), gamma) - smoothing * losses.focal_log(other, gamma)
    return p[L_D.argmin()].item()
"""}
MISTAKES = {
    "class_weights": [
        ("when K counts every class, also those that are absent", "K = present.sum()", "K = len(n)"),
        ("when K counts the unknown class", "K = present.sum()", "K = (n > 0).sum()"),
        ("without K", "(K * n)", "n"),
        ("when unlabelled pixels are left out of the sum over pixels", "n.sum()", "n[present].sum()"),
        ("when the unknown class gets a weight like the others", "present[unknown] = False", "pass"),
        ("with the share of a class in place of one over it", "n.sum() / (K * n).clamp_min(1)", "K * n / n.sum()")],
    "focal_log": [
        ("with log p alone, without the focal factor", "(-torch.expm1(log_p)).clamp_min(1e-12) ** gamma * log_p",
         "log_p"),
        ("with p^gamma in place of (1 - p)^gamma", "(-torch.expm1(log_p)).clamp_min(1e-12)", "log_p.exp()"),
        ("with 1 - exp(log p), which is 0 for p near 1", "(-torch.expm1(log_p))", "(1 - log_p.exp())"),
        ("without the floor under 1 - p", ".clamp_min(1e-12)", ""),
        ("with gamma as a factor in place of an exponent", "** gamma *", "* gamma *"),
        ("with the other sign: the minus belongs to the losses", "return (-torch", "return -(-torch")],
    "discriminator_loss": [
        ("with \"fake\" as the first output instead of the last", "[..., -1]", "[..., 0]"),
        ("without alpha", "alpha[label_map] * smoothed", "smoothed"),
        ("with alpha on the generated pixels, too", "-focal_log(log_p_g_fake, gamma)",
         "-alpha[label_map] * focal_log(log_p_g_fake, gamma)"),
        ("with log p alone on the real pixels, without the focal factor", "every_class = focal_log(log_p_x, gamma)",
         "every_class = log_p_x"),
        ("with the mean over real pixels in place of the sum", "smoothed).sum(dim=(1, 2)).mean()", "smoothed).mean()"),
        ("with the sum over images in place of the mean", "smoothed).sum(dim=(1, 2)).mean()", "smoothed).sum()"),
        ("when the true class is only scaled by 1 - epsilon", " + smoothing / C * (every_class.sum(3) - own_class)",
         ""),
        ("when each of the other outputs gets the whole epsilon", "smoothing / C", "smoothing"),
        ("when epsilon is spread over all C + 1 outputs, the true class included",
         "smoothing / C * (every_class.sum(3) - own_class)", "smoothing / (C + 1) * every_class.sum(3)"),
        ("when epsilon is spread over the other classes and not over \"fake\"",
         "smoothing / C * (every_class.sum(3) - own_class)",
         "smoothing / (C - 1) * (every_class[..., :-1].sum(3) - own_class)"),
        ("with smoothing on the generated pixels, too", "fake = -focal_log", "fake = -(1 - smoothing) * focal_log"),
        ("with the softmax over an axis of the picture instead of the outputs", "log_probabilities(real_logits)",
         "F.log_softmax(real_logits.float().permute(0, 2, 3, 1), dim=2)"),
        ("with the softmax over the C classes, without \"fake\"", "log_probabilities(real_logits)",
         "log_probabilities(real_logits[:, :-1])"),
        ("without the second line, the generated pixels", "return real + fake", "return real")],
    "generator_loss": [
        ("without alpha", "alpha[label_map] * focal_log(own_class, gamma)", "focal_log(own_class, gamma)"),
        ("with log p alone, without the focal factor", "focal_log(own_class, gamma)", "own_class"),
        ("when D is asked not to say \"fake\", whatever else it says",
         "return -(alpha[label_map] * focal_log(own_class, gamma))",
         "return (alpha[label_map] * focal_log(log_p_g[..., -1], gamma))"),
        ("with the mean over pixels in place of the sum", ".sum(dim=(1, 2)).mean()", ".mean()"),
        ("with the sum over images in place of the mean", ".sum(dim=(1, 2)).mean()", ".sum()"),
        ("when the sum is divided by the sum of the weights, as F.cross_entropy(weight=...) does",
         ".sum(dim=(1, 2)).mean()", ".sum() / alpha[label_map].sum()"),
        ("with the softmax over the C classes, without \"fake\"", "log_probabilities(fake_logits)",
         "log_probabilities(fake_logits[:, :-1])"),
        ("without the minus: D would be asked to be wrong", "return -(alpha", "return (alpha")],
    "best_answer": [
        ("without the focal factor: 1 - epsilon", "p[L_D.argmin()].item()", "1 - smoothing"),
        ("when the other outputs together are one output of 1 - p", "torch.log((1 - p) / num_classes)",
         "torch.log(1 - p)"),
        ("when every other output costs the whole epsilon", "- smoothing * losses",
         "- smoothing * num_classes * losses"),
        ("without smoothing", "- smoothing * losses.focal_log(other, gamma)", ""),
        ("where the loss is highest", "argmin", "argmax")]}
