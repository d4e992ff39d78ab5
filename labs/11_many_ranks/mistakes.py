"""The teacher's: plausible mistakes of lab 11, as changes of the project's own functions. labs/check.py names them.

{task: [("This is what comes out ...", text of the function, text in its place), ...]}
SOLUTIONS: of a piece that the project has only inside train.loop, and of one whose derivative the project writes out.
"""

SOLUTIONS = {"noise_of_step": """
def noise_of_step(seed, step, batch_size, z_dim, ranks):
    rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return support.ranks.share(train.draw_noise(batch_size, z_dim, 0, rng), ranks)
""", "batch_norm": """
def batch_norm(norm, x):
    if not norm.training and norm.track_running_stats:
        return nn.BatchNorm2d.forward(norm, x)
    n = SumOverRanks.apply(x.new_tensor(x.numel() / x.shape[1]))
    mean = SumOverRanks.apply(x.sum(dim=(0, 2, 3))) / n
    centred = x - mean[:, None, None]
    variance = SumOverRanks.apply(centred.square().sum(dim=(0, 2, 3))) / n
    if norm.track_running_stats:
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean.detach(), norm.momentum)
        norm.running_var.lerp_(variance.detach() * n / (n - 1), norm.momentum)
    y = centred * (variance + norm.eps).rsqrt()[:, None, None]
    return y * norm.weight[:, None, None] + norm.bias[:, None, None] if norm.affine else y
"""}
MISTAKES = {
    "share": [
        ("when every rank gets the whole batch", "t.chunk(ranks.world)[ranks.rank]", "t"),
        ("when every rank gets the first part", "[ranks.rank]", "[0]"),
        ("with every world-th picture in place of pictures in a row", "t.chunk(ranks.world)[ranks.rank]",
         "t[ranks.rank::ranks.world]"),
        ("with parts of `world` pictures in place of `world` parts", "t.chunk(ranks.world)",
         "t.split(ranks.world)"),
        ("with the parts in reverse order", "[ranks.rank]", "[-1 - ranks.rank]")],
    "noise_of_step": [
        ("when each rank draws its own noise with the same seed: all ranks draw the same",
         "support.ranks.share(train.draw_noise(batch_size, z_dim, 0, rng), ranks)",
         "train.draw_noise(batch_size // ranks.world, z_dim, 0, rng)"),
        ("when each rank has a seed of its own: another world, another run", "+ step)", "+ step + ranks.rank)"),
        ("with the same noise in every step", " + step)", ")"),
        ("with seed + step: step 2 of seed 0 is step 1 of seed 1", "seed * 1_000_003 + step", "seed + step"),
        ("without this rank's part", "support.ranks.share(train.draw_noise(batch_size, z_dim, 0, rng), ranks)",
         "train.draw_noise(batch_size, z_dim, 0, rng)")],
    "draws": [
        ("when every rank gets rank 0's part", " + self.rank * self.per_rank", ""),
        ("when the parts of the ranks overlap", "self.rank * self.per_rank", "self.rank"),
        ("when steps are as long as one rank's part", "step * self.batch_size", "step * self.per_rank"),
        ("when every rank has a seed of its own", "(self.seed, epoch, N)", "(self.seed + self.rank, epoch, N)"),
        ("with the same order in every epoch", "(self.seed, epoch, N)", "(self.seed, 0, N)"),
        ("when draws are counted from the step at which the run was resumed", "first = step *",
         "first = (step - self.steps.start) *"),
        ("with n in place of n % N as the last number of a key", "epoch, n % N))", "epoch, n))"),
        ("with the number of the draw in the place of the picture", "int(order[n % N])", "n % N")],
    "count_classes": [
        ("with this rank's pixels alone", "if world > 1:", "if False:"),
        ("with the mean over the ranks", "    return counts", "    return counts // world"),
        ("with the pictures that have the class in place of its pixels", "counts = labels.new_zeros(num_classes)"
         ".scatter_add_(0, labels, torch.ones_like(labels))",
         "counts = torch.stack([(label_map == c).flatten(1).any(dim=1).sum() for c in range(num_classes)])"),
        ("when classes after the last one in the batch are left out", "counts = labels.new_zeros(num_classes)"
         ".scatter_add_(0, labels, torch.ones_like(labels))", "counts = labels.bincount()")],
    "average_gradients": [
        ("with the sum over the ranks in place of the mean", "flat.div_(world)", "flat"),
        ("without asking the other ranks", "dist.all_reduce(flat)", "pass"),
        ("when the mean is not written back", "torch._foreach_copy_(views, ", "list("),
        ("when the mean is divided by the number of ranks twice", "flat.div_(world)", "flat.div_(world ** 2)"),
        ("when only the first gradient gets its mean", "_foreach_copy_(views, flat.div_(world)",
         "_foreach_copy_(views[:1], flat.div_(world)[:len(views[0])]"),
        ("with a gradient of None taken for a tensor", " if p.grad is not None", "")],
    "batch_norm": [
        ("with the mean of this rank alone", "mean = SumOverRanks.apply(x.sum(dim=(0, 2, 3))) / n",
         "mean = x.mean(dim=(0, 2, 3))"),
        ("with the variance around each rank's own mean: that of the means is lost",
         "variance = SumOverRanks.apply(centred.square().sum(dim=(0, 2, 3))) / n",
         "variance = SumOverRanks.apply((x - x.mean(dim=(0, 2, 3))[:, None, None]).square().sum(dim=(0, 2, 3))) / n"),
        ("with n of this rank alone", "n = SumOverRanks.apply(x.new_tensor(x.numel() / x.shape[1]))",
         "n = x.new_tensor(x.numel() / x.shape[1])"),
        ("with pictures in place of pixels as n", "x.numel() / x.shape[1]", "float(len(x))"),
        ("when no gradient goes through the mean", "apply(x.sum(dim=(0, 2, 3)))",
         "apply(x.detach().sum(dim=(0, 2, 3)))"),
        ("when no gradient goes through the variance", "apply(centred.square().sum(dim=(0, 2, 3)))",
         "apply(centred.detach().square().sum(dim=(0, 2, 3)))"),
        ("with n - 1 also where x is divided by the deviation", "(variance + norm.eps).rsqrt()",
         "(variance * n / (n - 1) + norm.eps).rsqrt()"),
        ("without n / (n - 1) in the running variance", "variance.detach() * n / (n - 1)", "variance.detach()"),
        ("with eps added to the deviation in place of the variance", "(variance + norm.eps).rsqrt()",
         "(1 / (variance.sqrt() + norm.eps))"),
        ("with m and 1 - m exchanged in the running mean", "lerp_(mean.detach(), norm.momentum)",
         "lerp_(mean.detach(), 1 - norm.momentum)"),
        ("when num_batches_tracked stays 0", "norm.num_batches_tracked += 1", "pass"),
        ("without weight and bias", "y * norm.weight[:, None, None] + norm.bias[:, None, None]", "y")]}
