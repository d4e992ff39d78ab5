"""The teacher's: plausible mistakes of lab 08, as changes of the project's own functions. labs/check.py names them.

{task: [("This is what comes out ...", text of the function, text in its place), ...]}
SOLUTIONS: of the piece that the project has only inside train.loop.
"""

SOLUTIONS = {"two_steps": """
def two_steps(generator_losses, discriminator_losses, G, D, optimiser_G, optimiser_D, parts):
    D_parameters, made, losses = optimiser_D.param_groups[0]["params"], [], [0.0, 0.0]
    for p in D_parameters:
        p.requires_grad_(False)
    optimiser_G.zero_grad()
    for part in parts:
        terms, image = generator_losses(G, D, part)
        L_G = sum(terms.values()) / len(parts)
        L_G.backward()
        losses[0] += L_G.item()
        made.append(image.detach())
    optimiser_G.step()
    for p in D_parameters:
        p.requires_grad_(True)
    optimiser_D.zero_grad()
    for part, image in zip(parts, made):
        L_D = sum(discriminator_losses(D, part, image).values()) / len(parts)
        L_D.backward()
        losses[1] += L_D.item()
    optimiser_D.step()
    return tuple(losses)
"""}
D_FIRST = """optimiser_D.zero_grad()
    for part in parts:
        image = generator_losses(G, D, part)[1].detach()
        (sum(discriminator_losses(D, part, image).values()) / len(parts)).backward()
    optimiser_D.step()
    optimiser_G.zero_grad()
    for part in parts:
        (sum(generator_losses(G, D, part)[0].values()) / len(parts)).backward()
    optimiser_G.step()
    return 0.0, 0.0
"""
BODY = SOLUTIONS["two_steps"].split("0.0]\n    ")[1]
MISTAKES = {
    "trained_parameters": [
        ("with the frozen parameters, too", " if p.requires_grad", ""),
        ("with those of the first net alone", "in nets if", "in nets[:1] if"),
        ("when None is taken for a net", " if net is not None", ""),
        ("with a generator expression, which is empty after its first use",
         "[p for net in nets if net is not None for p in net.parameters() if p.requires_grad]",
         "(p for net in nets if net is not None for p in net.parameters() if p.requires_grad)")],
    "two_steps": [
        ("without .detach(): L_D goes back into G", "image.detach()", "image"),
        ("with D's step before G's", BODY, D_FIRST),
        ("when D learns from new pictures, which G draws after its update", "discriminator_losses(D, part, image)",
         "discriminator_losses(D, part, generator_losses(G, D, part)[1].detach())"),
        ("when G's gradients of the step before are not cleared", "optimiser_G.zero_grad()", "pass"),
        ("when D's gradients of the step before are not cleared", "optimiser_D.zero_grad()", "pass"),
        ("when G's gradients are cleared before each part: the last part alone counts",
         "optimiser_G.zero_grad()\n    for part in parts:", "for part in parts:\n        optimiser_G.zero_grad()"),
        ("with the sum over the parts in place of the mean, for G", "L_G = sum(terms.values()) / len(parts)",
         "L_G = sum(terms.values())"),
        ("with the sum over the parts in place of the mean, for D",
         ".values()) / len(parts)\n        L_D", ".values())\n        L_D"),
        ("when G is moved after each part", "made.append(image.detach())",
         "made.append(image.detach())\n        optimiser_G.step()\n        optimiser_G.zero_grad()"),
        ("with one backward pass of G for all parts, which must then fit into memory together", "L_G.backward()",
         "whole = L_G + (whole if made else 0)\n        if len(made) == len(parts) - 1:\n            whole.backward()"),
        ("with the first term of G's losses alone", "sum(terms.values())", "next(iter(terms.values()))"),
        ("when D's weights ask for gradients in (1), which nobody uses", "p.requires_grad_(False)", "pass"),
        ("when D's weights stay frozen in (2)", "p.requires_grad_(True)", "pass"),
        ("when all of D is frozen and freed, the backbone with it",
         "for p in D_parameters:\n        p.requires_grad_(True)",
         "for p in D.parameters():\n        p.requires_grad_(True)")],
    "update_ema": [
        ("with d and 1 - d exchanged", "list(G.parameters()), 1 - d)",
         "list(G.parameters()), d)"),
        ("without the warm-up: d = decay from the start",
         "d = min(decay, (1 + step) / (10 + step))\n    # theta", "d = decay\n    # theta"),
        ("with the larger of both in place of the smaller", "d = min(decay, (1 + step) / (10 + step))\n    # theta",
         "d = max(decay, (1 + step) / (10 + step))\n    # theta"),
        ("when steps are counted from 0", "(1 + step) / (10 + step))\n    # theta", "step / (9 + step))\n    # theta"),
        ("when G is moved towards its average", "list(ema.parameters()), list(G.parameters())",
         "list(G.parameters()), list(ema.parameters())"),
        ("when the buffers are averaged, too", "list(ema.parameters()), list(G.parameters())",
         "*([t for t in net.state_dict().values() if t.is_floating_point()] for net in (ema, G))")],
    "refresh_ema": [
        ("without the copies of G's buffers", "mine.copy_(theirs)", "pass"),
        ("without m.reset_running_stats()", "m.reset_running_stats()", "pass"),
        ("with the momentum of training in place of the plain mean", "m.momentum = None", "pass"),
        ("when the batches pass in eval mode, which measures nothing", "ema.train()", "ema.eval()"),
        ("with G's own statistics: no batch passes", "ema(label_map, z, offsets)", "pass"),
        ("when the batches pass through G", "ema(label_map, z, offsets)", "G(label_map, z, offsets)"),
        ("when the average stays in training mode", "    ema.eval()\n", ""),
        ("when the momentum is not put back", "m.momentum = momentum", "pass")],
    "save": [
        ("without the state of G's optimiser", "\"optimiser_G\": run.optimiser_G.state_dict(), ", ""),
        ("with the state of G's optimiser for both", "run.optimiser_D.state_dict()", "run.optimiser_G.state_dict()"),
        ("with the average in the place of G", "\"G\": G", "\"G\": average"),
        ("with G in the place of the average", "\"ema\": average", "\"ema\": G"),
        ("with the parameters of G alone, without its batch-norm statistics", "G = run.G.state_dict()",
         "G = {name: p.detach() for name, p in run.G.named_parameters()}"),
        ("with the next step's number", "\"step\": step", "\"step\": step + 1"),
        ("with the frozen backbone, which any run can load by itself", "trained(run.D)", "run.D.state_dict()"),
        ("without the file of the step before", ", run.folder / \"latest_previous.pt\")", ")"),
        ("when every rank writes the file", "if ranks.rank == 0:", "if True:"),
        ("when the ranks do not wait for each other at the end", "ranks.wait()", "pass")]}
