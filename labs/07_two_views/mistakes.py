"""The teacher's: plausible mistakes of lab 07, as changes of the project's own functions. labs/check.py names them.

{task: [("This is what comes out ...", text of the function, text in its place), ...]}
SOLUTIONS: of the piece that the project does not have.
"""

SOLUTIONS = {"blind_direction": """
def blind_direction(weight):
    filters = weight.permute(0, 2, 3, 1).reshape(-1, weight.shape[1])
    return torch.linalg.svd(filters).Vh[-1]
"""}
MISTAKES = {
    "draw_positions": [
        ("when an anchor's own position is one of its negatives", "anchor[:, None] == candidate[None]",
         "torch.zeros(len(anchor), len(candidate), dtype=torch.bool)"),
        ("when most anchors have N + 1 negatives", "left_out[~left_out.any(dim=1), -1] = True", "pass"),
        ("when the last candidate is left out by every anchor", "left_out[~left_out.any(dim=1), -1] = True",
         "left_out[:, -1] = True"),
        ("with N candidates in place of N + 1", "[:N + 1]", "[:N]"),
        ("with anchors that can be drawn twice", "torch.randperm(pixels, generator=rng)[:anchors]",
         "torch.randint(pixels, (anchors,), generator=rng)"),
        ("with the anchors as candidates", "torch.randperm(pixels, generator=rng)[:N + 1]", "anchor[:N + 1]")],
    "info_nce": [
        ("without tau", " / tau             # (B, A, 1)", "\n        tau = 1"),
        ("with tau on the negatives alone", " / tau             # (B, A, 1)", ""),
        ("with tau as a factor", "keepdim=True) / tau ", "keepdim=True) * tau * tau / tau "),
        ("without the positive in the sum below the line", "torch.cat([positive, negative], dim=2)", "negative"),
        ("when a candidate that is left out counts", "negative.masked_fill(left_out, float(\"-inf\"))", "negative"),
        ("when what is left out counts with a product of 0", "float(\"-inf\")", "0.0"),
        ("with the mean over the anchors in place of the sum", "L_NCE.sum(dim=1).mean()", "L_NCE.mean()"),
        ("with the sum over the pictures in place of the mean", "L_NCE.sum(dim=1).mean()", "L_NCE.sum()"),
        ("with log(sum e^x) written out, which overflows for a small tau", ".logsumexp(dim=2)",
         ".exp().sum(dim=2).log()"),
        ("with the other sign", "return L_NCE", "return -L_NCE")],
    "project": [
        ("without the length of 1", "F.normalize(self.mlps[scale](picked).float(), dim=2)",
         "self.mlps[scale](picked).float()"),
        ("with the length of 1 before the MLP", "F.normalize(self.mlps[scale](picked).float(), dim=2)",
         "self.mlps[scale](F.normalize(picked.float(), dim=2))"),
        ("with the MLP of the first scale for all", "self.mlps[scale]", "self.mlps[0]"),
        ("with a length of 1 over the positions in place of the vector", "dim=2)", "dim=1)"),
        ("when rows and columns of the map are exchanged", "feature_map.flatten(2)",
         "feature_map.transpose(2, 3).flatten(2)"),
        ("without the MLP", "self.mlps[scale](picked)", "picked")],
    "contrastive_loss": [
        ("with negatives of the generated picture", "P.project(scale, h_x, candidate)",
         "P.project(scale, h_g, candidate)"),
        ("with the positive at the same place of the generated picture", "P.project(scale, h_x, anchor)",
         "P.project(scale, h_g, anchor)"),
        ("with anchors of the real picture and positives of the generated one",
         "v = P.project(scale, h_g, anchor)                                 # (B, A, d_v), of the generated picture",
         "v, h_x = P.project(scale, h_x, anchor), h_g"),
        ("when the projections learn from the real picture, too", "with torch.no_grad():\n            v_pos",
         "with torch.enable_grad():\n            v_pos"),
        ("when the generated picture is detached: G learns nothing", "H_g, total = P(fake), 0",
         "H_g, total = [h.detach() for h in P(fake)], 0"),
        ("when P is called on the real picture first: call it on fake first", "H_g, total = P(fake), 0",
         "_, H_g, total = torch.no_grad()(P)(real), P(fake), 0"),
        ("with the last scale alone", "total = total + (", "total = ("),
        ("with the mean over the anchors for both reductions", "L_NCE if reduction == \"sum\" else L_NCE / len(anchor)",
         "L_NCE / len(anchor)"),
        ("with the sum over the anchors for both reductions", "L_NCE if reduction == \"sum\" else L_NCE / len(anchor)",
         "L_NCE"),
        ("without tau: the default in its place", "left_out, tau)", "left_out)")],
    "diversity_loss": [
        ("without the cutoff: pairs that differ enough earn something", ".clamp_min(0)", ""),
        ("with the sum over the pairs in place of the mean", ".clamp_min(0).mean()", ".clamp_min(0).sum()"),
        ("with the cutoff of the mean in place of the mean of the cutoffs", ".clamp_min(0).mean()",
         ".mean().clamp_min(0)"),
        ("without the distance of the two z", "features_apart / z_apart", "features_apart"),
        ("when it pulls the pictures together", "tau_div - features_apart / z_apart", "features_apart / z_apart"),
        ("without absolute values of the features' difference", ".abs().mean(dim=(1, 2, 3))", ".mean(dim=(1, 2, 3))"),
        ("with squares in place of absolute values", ".abs().mean(dim=(1, 2, 3))", ".square().mean(dim=(1, 2, 3))"),
        ("with the sums of the printed norms in place of means", ".abs().mean(dim=(1, 2, 3))",
         ".abs().sum(dim=(1, 2, 3)) / z_1.shape[1]")],
    "blind_direction": [
        ("with the direction that the convolution sees best", "Vh[-1]", "Vh[0]"),
        ("when channels and places of the filters are mixed up", "weight.permute(0, 2, 3, 1).reshape(",
         "weight.reshape("),
        ("when only the middle of each filter is taken", "weight.permute(0, 2, 3, 1).reshape(-1, weight.shape[1])",
         "weight[:, :, 1, 1]"),
        ("with the smallest direction of the first 27, which is not 0", "torch.linalg.svd(filters).Vh[-1]",
         "torch.linalg.svd(filters, full_matrices=False).Vh[-1]")]}
