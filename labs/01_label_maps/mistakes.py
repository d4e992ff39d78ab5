"""The teacher's: plausible mistakes of lab 01, as changes of the project's own functions. labs/check.py names them.

{task: [("This is what comes out ...", text of the function, text in its place), ...]}
"""

MISTAKES = {
    "colour_labels": [
        ("when class 1 gets the first colour: the classes begin with 0", "np.asarray(label_map)]",
         "np.asarray(label_map) - 1]"),
        ("with blue, green, red in place of red, green, blue", "[np.asarray(label_map)]",
         "[np.asarray(label_map)][..., ::-1]"),
        ("with the colours as the first dimension instead of the last", "np.asarray(palette)[np.asarray(label_map)]",
         "np.moveaxis(np.asarray(palette)[np.asarray(label_map)], -1, -3)"),
        ("with the picture transposed, x before y", "np.asarray(label_map)]",
         "np.asarray(label_map).swapaxes(-1, -2)]")],
    "one_hot": [
        ("when the classes are counted from 1", "torch.arange(num_classes,", "torch.arange(1, num_classes + 1,"),
        ("when (B, H, W, C) is viewed as (B, C, H, W): that takes permute(0, 3, 1, 2)",
         "(label_map[..., None] == classes).to(dtype).permute(0, 3, 1, 2)",
         "F.one_hot(label_map, num_classes).view(-1, num_classes, *label_map.shape[1:]).to(dtype)"),
        ("with the classes as the last dimension", ".permute(0, 3, 1, 2)", ""),
        ("with 1 for every class up to the label: classes have no order", "==", ">="),
        ("with the class number in place of 1", "(label_map[..., None] == classes)",
         "(label_map[..., None] * (label_map[..., None] == classes))"),
        ("without .to(dtype)", ".to(dtype)", ""),
        ("when the class numbers are made on the CPU", ", device=label_map.device", "")],
    "nearest": [
        ("with the pixel under the left end of each piece instead of its middle",
         "(np.arange(new) * 2 + 1) * old // (2 * new)", "np.arange(new) * old // new"),
        ("when the first and the last pixel are pinned to the ends", "(np.arange(new) * 2 + 1) * old // (2 * new)",
         "np.linspace(0, old - 1, new).round().astype(int)"),
        ("when the middle is rounded instead of cut to a whole number", "(np.arange(new) * 2 + 1) * old // (2 * new)",
         "np.minimum(np.round((np.arange(new) + 0.5) * old / new).astype(int), old - 1)"),
        ("with the ratio old / new rounded first: the middle falls on the wrong side of an edge",
         "(np.arange(new) * 2 + 1) * old // (2 * new)", "((np.arange(new) + 0.5) * (old / new)).astype(int)"),
        ("with old and new exchanged", "old // (2 * new)", "new // (2 * old)"),
        ("when the picture is cut off instead of resized", "(np.arange(new) * 2 + 1) * old // (2 * new)",
         "np.minimum(np.arange(new), old - 1)")],
    "offset_maps": [
        ("with the other sign: from the centre to the pixel", "(centre[:, which] - position)",
         "(position - centre[:, which])"),
        ("in pixels, without the division by H and W", " / [[H], [W]]", ""),
        ("with dy over W and dx over H", "[[H], [W]]", "[[W], [H]]"),
        ("with dx before dy", "offsets.reshape(2, H, W)", "offsets[::-1].reshape(2, H, W)"),
        ("with the middle of the bounding box in place of the centre of mass",
         "np.bincount(which, weights=p) / count for p in position",
         "np.array([(p[which == k].min() + p[which == k].max()) / 2 for k in range(len(count))]) for p in position"),
        ("when 0, no instance, is taken for one more instance", "np.flatnonzero(instances)", "np.arange(H * W)"),
        ("when the smallest id is left out although it is not 0, as by np.unique(instances)[1:]",
         "np.flatnonzero(instances)", "np.flatnonzero(instances != instances.min())"),
        ("with one centre for all instances together", "np.unique(instances.reshape(-1)[inside],",
         "np.unique(instances.reshape(-1)[inside] > 0,")]}
