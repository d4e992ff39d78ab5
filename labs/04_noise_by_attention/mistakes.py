"""The teacher's: plausible mistakes of lab 04, as changes of the project's own functions. labs/check.py names them.

{task: [("This is what comes out ...", text of the function, text in its place), ...]}
"""

MISTAKES = {
    "tokens_of_noise": [
        ("with n_k and d_w exchanged", "(self.tokens, -1)", "(-1, self.tokens)"),
        ("with tokens that take every n_k-th number of the MLP", "unflatten(-1, (self.tokens, -1))",
         "unflatten(1, (-1, self.tokens)).transpose(1, 2)"),
        ("without cutting the numbers into tokens", ".unflatten(-1, (self.tokens, -1))", ""),
        ("with the first token repeated n_k times", "unflatten(-1, (self.tokens, -1))",
         "unflatten(-1, (self.tokens, -1))[:, :1].expand(-1, self.tokens, -1)")],
    "attention": [
        ("without the division by sqrt(d_q)", " / d_q ** 0.5", ""),
        ("with d_q in place of sqrt(d_q)", "d_q ** 0.5", "d_q"),
        ("with sqrt(n), the number of keys, in place of sqrt(d_q)", "d_q = query.shape[-1]", "d_q = key.shape[1]"),
        ("with sqrt(T), the number of pixels, in place of sqrt(d_q)", "d_q = query.shape[-1]", "d_q = query.shape[1]"),
        ("with the softmax over the queries instead of the keys", "dim=2", "dim=1"),
        ("with the keys where the values belong", "@ value", "@ key"),
        ("without the softmax", "torch.softmax(scores, dim=2)", "scores"),
        ("with the largest score alone instead of a softmax", "torch.softmax(scores, dim=2)",
         "F.one_hot(scores.argmax(dim=2), key.shape[1]).to(scores)")],
    "inject_noise": [
        ("without h: the noise replaces the label map instead of adding to it", "h + self.eta * A", "self.eta * A"),
        ("without the gate eta", "self.eta * A", "A"),
        ("with the gate on h instead of on A", "h + self.eta * A", "self.eta * h + A"),
        ("with keys and values exchanged", "self.to_key(w), self.to_value(w)", "self.to_value(w), self.to_key(w)"),
        ("when the rows of A are reshaped without a transpose, so that pixels and channels mix",
         "A.transpose(1, 2).unflatten(2, h.shape[2:])", "A.reshape(h.shape)"),
        ("when h is reshaped to rows without a transpose, so that pixels and channels mix",
         "h.flatten(2).transpose(1, 2)", "h.reshape(len(h), -1, h.shape[1])"),
        ("with a gate of 1 + eta, which is not closed at the start", "self.eta * A", "(1 + self.eta) * A"),
        ("with sigmoid(eta) in place of eta, a gate which is half open at the start", "self.eta * A",
         "torch.sigmoid(self.eta) * A")]}
