"""What python labs/check.py 06 asks of lab.py."""
import math

import torch

import losses
from labs.pieces import Task


def still_falls(p, num_classes, gamma, smoothing):
    """Whether L_D of one real pixel still falls when its p grows: the sign of its gradient. By losses.py."""
    log_p = [math.log(p)] + [math.log((1 - p) / num_classes)] * num_classes
    real = torch.tensor(log_p, dtype=torch.float32).view(1, -1, 1, 1).requires_grad_()               # (1, C + 1, 1, 1)
    t, alpha = torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(num_classes)
    losses.discriminator_loss(real, real.detach(), t, alpha, gamma, smoothing).backward()
    return real.grad[0, 0].item() < 0


def the_loss_is_lowest_there(best_answer):
    for num_classes, gamma, smoothing in ((11, 2.0, 0.1), (3, 2.0, 0.1), (3, 1.0, 0.3), (151, 2.0, 0.1), (5, 0.0, 0.2)):
        low, high = 1e-3, 1 - 1e-3
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if still_falls(middle, num_classes, gamma, smoothing) else (low, middle)
        torch.testing.assert_close(
            float(best_answer(num_classes, gamma, smoothing)), low, atol=2e-3, rtol=0,
            msg=lambda text: f"best p for C {num_classes}, gamma {gamma:g}, epsilon {smoothing:g}\n{text}")


SUM, PIXELS = "test_losses.py::test_eq3_discriminator_loss_is_the_papers_sum", "test_losses.py::test_eq3_"
TASKS = [
    Task("class_weights", "losses.class_weights", "Sec. 3.3, below Eq. 3",
         ["test_losses.py::test_class_weights_by_hand", "test_losses.py::test_class_weights_by_loops"]),
    Task("focal_log", "losses.focal_log", "Sec. 3.3, Eq. 3, the factor before log p",
         ["test_losses.py::test_eq4_generator_loss_is_the_papers_sum",
          "test_losses.py::test_eq3_focal_factor_is_exact_near_p_1",
          "test_losses.py::test_eq4_a_certain_answer_costs_nothing_and_teaches_nothing"]),
    Task("discriminator_loss", "losses.discriminator_loss", "Sec. 3.3, Eq. 3",
         [SUM + "[0.0]", SUM + "[0.1]", PIXELS + "gamma_0_is_the_weighted_cross_entropy", PIXELS + "by_hand",
          PIXELS + "fake_is_the_last_logit", PIXELS + "unknown_pixels_count_as_fake_but_not_as_real"]),
    Task("generator_loss", "losses.generator_loss", "Sec. 3.3, Eq. 4",
         ["test_losses.py::test_eq4_generator_loss_is_the_papers_sum",
          "test_losses.py::test_eq4_unknown_pixels_do_not_train_the_generator",
          "test_losses.py::test_eq3_eq4_stay_finite_when_the_right_class_is_hopeless[200.0-2.0]"]),
    Task("best_answer", None, "Eq. 3 and the handout, \"Where D's optimum is\"", [the_loss_is_lowest_there])]
