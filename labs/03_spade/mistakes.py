"""The teacher's: plausible mistakes of lab 03, as changes of the project's own functions. labs/check.py names them.

{task: [("This is what comes out ...", text of the function, text in its place), ...]}
SOLUTIONS: of the piece that the project does not have.
"""

SOLUTIONS = {"normalise": """
def normalise(x, eps=1e-5):
    mu = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = (x - mu).square().mean(dim=(0, 2, 3), keepdim=True)
    return (x - mu) / (variance + eps).sqrt()
"""}
MISTAKES = {
    "normalise": [
        ("with the statistics of each picture alone: instance norm",
         "mu = x.mean(dim=(0, 2, 3), keepdim=True)\n    variance = (x - mu).square().mean(dim=(0, 2, 3), keepdim=True)",
         "mu = x.mean(dim=(2, 3), keepdim=True)\n    variance = (x - mu).square().mean(dim=(2, 3), keepdim=True)"),
        ("with the statistics of each pixel over its channels", "mu = x.mean(dim=(0, 2, 3), keepdim=True)",
         "mu = x.mean(dim=1, keepdim=True)"),
        ("with the variance in place of the standard deviation", "(variance + eps).sqrt()", "(variance + eps)"),
        ("without the mean", "return (x - mu)", "return x"),
        ("with n - 1 in place of n under the root", "(x - mu).square().mean(dim=(0, 2, 3), keepdim=True)",
         "x.var(dim=(0, 2, 3), keepdim=True)"),
        ("with eps beside the root instead of under it", "(variance + eps).sqrt()", "(variance.sqrt() + eps)")],
    "spade": [
        ("with gamma in place of 1 + gamma", "self.norm(x), 1 + gamma)", "self.norm(x), gamma)"),
        ("with gamma and beta exchanged", "gamma, beta = ", "beta, gamma = "),
        ("without the normalisation", "self.norm(x)", "x"),
        ("without beta", "torch.addcmul(beta, ", "torch.addcmul(0 * beta, "),
        ("when beta is added before the scale", "torch.addcmul(beta, self.norm(x), 1 + gamma)",
         "(self.norm(x) + beta) * (1 + gamma)"),
        ("when the normalisation comes last and undoes the modulation",
         "torch.addcmul(beta, self.norm(x), 1 + gamma)", "self.norm(beta + x * (1 + gamma))"),
        ("with one gamma and beta for the whole picture, the mean over its pixels",
         "torch.addcmul(beta, self.norm(x), 1 + gamma)",
         "beta.mean(dim=(2, 3), keepdim=True) + self.norm(x) * (1 + gamma).mean(dim=(2, 3), keepdim=True)")],
    "label_block": [
        ("with the ReLU of Fig. 3 in place of the GELU of the text", "F.gelu", "F.relu"),
        ("without batch norm", "self.norm(self.conv(h))", "self.conv(h)"),
        ("without GELU", "F.gelu(self.norm(self.conv(h)))", "self.norm(self.conv(h))"),
        ("with GELU before batch norm", "F.gelu(self.norm(self.conv(h)))", "self.norm(F.gelu(self.conv(h)))"),
        ("without the noise", "self.cross_attention(h, w, regions)", "h"),
        ("without self-attention", "self.self_attention(h)", "h"),
        ("with self-attention before the noise", "h = self.cross_attention(h, w, regions)\n",
         "h = self.cross_attention(self.self_attention(h), w, regions)\n        return self.out(h)\n"),
        ("without the pointwise convolution", "return self.out(h)", "return h")],
    "label_pyramid": [
        ("with the lowest scale first", "return modulation", "return modulation[::-1]"),
        ("with the lowest map alone", "return modulation", "return modulation[-1:]"),
        ("when every block reads the stem", "h = block(h, w, regions)\n        modulation.append(h)",
         "modulation.append(block(h, w, regions))"),
        ("with what each block reads in place of what it gives",
         "h = block(h, w, regions)\n        modulation.append(h)",
         "modulation.append(h)\n        h = block(h, w, regions)"),
        ("without the stem", "self.stem(x), []", "x, []"),
        ("with the stem as h_1", "self.stem(x), []\n", "self.stem(x), []\n    modulation.append(h)\n")],
    "generate": [
        ("with a label map that was averaged to the lowest scale",
         "F.interpolate(x, size=h_L.shape[2:], mode=\"nearest\")", "F.adaptive_avg_pool2d(x, h_L.shape[2:])"),
        ("when the picture grows by bilinear interpolation", "F.interpolate(y, size=h_i.shape[2:], **self.growth)",
         "F.interpolate(y, size=h_i.shape[2:], mode=\"bilinear\", align_corners=False)"),
        ("with h_L in front of h_i in the condition", "torch.cat([h_i, resized], dim=1)",
         "torch.cat([resized, h_i], dim=1)"),
        ("with h_i twice, without h_L", "torch.cat([h_i, resized], dim=1)", "torch.cat([h_i, h_i], dim=1)"),
        ("with h_L resized by nearest neighbour", "mode=\"bilinear\", align_corners=False)", "mode=\"nearest\")"),
        ("when h_1, at full resolution, goes to the lowest block", "reversed(modulation)", "modulation"),
        ("without tanh", "torch.tanh(self.to_image(features).float())", "self.to_image(features).float()"),
        ("without .float() before tanh", "torch.tanh(self.to_image(features).float())",
         "torch.tanh(self.to_image(features))"),
        ("with a clamp in place of tanh", "torch.tanh(self.to_image(features).float())",
         "self.to_image(features).float().clamp(-1, 1)"),
        ("without the last LeakyReLU", "F.leaky_relu(y, 0.2)", "y"),
        ("with PyTorch's slope of 0.01 in the last LeakyReLU", "F.leaky_relu(y, 0.2)", "F.leaky_relu(y)")]}
