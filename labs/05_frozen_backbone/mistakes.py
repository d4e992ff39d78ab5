"""The teacher's: plausible mistakes of lab 05, as changes of the project's own functions. labs/check.py names them.

{task: [("This is what comes out ...", text of the function, text in its place), ...]}
SOLUTIONS: of the piece that the project does not have.
"""

SOLUTIONS = {"strengths": """
def strengths(feature):
    s = feature.std(dim=(0, 2, 3), correction=0)
    return s.sort(descending=True).values
"""}
CONDITIONED = "norm(torch.sigmoid(feature.float()) if sigmoid else feature.float())"
SQUASHED = "torch.sigmoid(feature.float()) if sigmoid else feature.float()"
MISTAKES = {
    "backbone_features": [
        ("when a picture in [-1, 1] is taken for one in [0, 1]", "(image + 1) / 2", "image"),
        ("with pixels in [0, 255]", "(image + 1) / 2", "(image + 1) * 127.5"),
        ("without the division by std", " / self.std", ""),
        ("without the mean", " - self.mean", ""),
        ("when the picture is detached: G would learn nothing from the features", "(image + 1)",
         "(image.detach() + 1)"),
        ("when every stage reads the picture", "x = stage(x)\n            features.append(x)",
         "features.append(stage(x))"),
        ("with the last features alone", "for f in features]", "for f in features[-1:]]"),
        ("when channels that come last stay there", "f.permute(0, 3, 1, 2) if self.channels_come_last else f", "f"),
        ("with height and width exchanged where channels come last", "(0, 3, 1, 2)", "(0, 3, 2, 1)")],
    "stay_frozen": [
        ("when the backbone follows D.train()", "train(False)", "train(mode)"),
        ("when the backbone is put into training mode", "train(False)", "train(True)"),
        ("when only the backbone itself is in evaluation mode, not its layers",
         "return super(Backbone, self).train(False)", "self.training = False\n    return self"),
        ("with eval(), which calls train(False), which calls eval(), without an end",
         "super(Backbone, self).train(False)", "self.eval()"),
        ("without returning the backbone", "return super", "super")],
    "condition_features": [
        ("without the sigmoid", SQUASHED, "feature.float()"),
        ("without the batch norm", CONDITIONED, SQUASHED),
        ("with the batch norm before the sigmoid", CONDITIONED,
         "torch.sigmoid(norm(feature.float())) if sigmoid else norm(feature.float())"),
        ("with tanh in place of the sigmoid", "torch.sigmoid", "torch.tanh"),
        ("with a softmax over the channels in place of the sigmoid", "torch.sigmoid(feature.float())",
         "torch.softmax(feature.float(), dim=1)"),
        ("when the switch \"w/o sigmoid\" has no effect", SQUASHED, "torch.sigmoid(feature.float())"),
        ("when the sigmoid of bfloat16 features is taken in bfloat16", "torch.sigmoid(feature.float())",
         "torch.sigmoid(feature).float()")],
    "strengths": [
        ("with n - 1 in place of n", "correction=0", "correction=1"),
        ("with the weakest channel first", "descending=True", "descending=False"),
        ("in the order of the channels", "s.sort(descending=True).values", "s"),
        ("with the mean left in: the root of the mean square", "feature.std(dim=(0, 2, 3), correction=0)",
         "feature.square().mean(dim=(0, 2, 3)).sqrt()"),
        ("with the mean over pictures of each picture's deviation", "feature.std(dim=(0, 2, 3), correction=0)",
         "feature.std(dim=(2, 3), correction=0).mean(dim=0)"),
        ("with the variance in place of its root", "feature.std(", "feature.var(")],
    "discriminate": [
        ("with the raw features", "condition_features(f, norm, self.sigmoid)", "f"),
        ("when the sigmoid cannot be left out", "condition_features(f, norm, self.sigmoid)",
         "condition_features(f, norm)"),
        ("when features that the caller gives are computed again", "if features is None:", "if True:"),
        ("without the mixing of Table 5", "conditioned = self.mixing(conditioned)", "pass"),
        ("when y grows by bilinear interpolation", "mode=\"nearest\"", "mode=\"bilinear\", align_corners=False"),
        ("without the skip connections", "y if skip is None else torch.cat([y, skip], dim=1)", "y"),
        ("with the skip connection in front of y", "torch.cat([y, skip], dim=1)", "torch.cat([skip, y], dim=1)"),
        ("with F_1 at the lowest scale", "(F_3, F_2, F_1, None, None)", "(F_1, F_2, F_3, None, None)"),
        ("without the full-resolution path", "torch.cat([y, self.full_resolution(image)], dim=1)", "y"),
        ("without the last LeakyReLU", "F.leaky_relu(y, 0.2)", "y"),
        ("with probabilities in place of logits", "self.to_logits(F.leaky_relu(y, 0.2))",
         "torch.softmax(self.to_logits(F.leaky_relu(y, 0.2)), dim=1)"),
        ("when the gradient stops at the features", "features = self.features(image)",
         "features = [f.detach() for f in self.features(image)]")]}
