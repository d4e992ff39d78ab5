"""What python labs/check.py 04 asks of lab.py."""
from labs.pieces import Task

TASKS = [
    Task("tokens_of_noise", "generator.NoiseMapping.forward", "Sec. 3.2, w = MLP(z)",
         ["test_generator.py::test_the_noise_mapping_is_a_three_layer_mlp"]),
    Task("attention", "generator.attention", "Sec. 3.2, Eq. 1",
         ["test_generator.py::test_eq1_attention_is_the_papers_formula", "test_generator.py::test_eq1_by_hand",
          "test_generator.py::test_eq1_the_fused_form_agrees_with_the_formula[6-3-4]"]),
    Task("inject_noise", "generator.CrossAttention.forward", "Sec. 3.2, Eq. 2",
         ["test_generator.py::test_eq2_cross_attention_adds_eta_times_attention",
          "test_generator.py::test_eq2_a_closed_gate_leaves_h_exactly_as_it_is",
          "test_generator.py::test_closed_gates_leave_z_without_any_effect"])]
