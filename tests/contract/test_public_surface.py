# SPDX-License-Identifier: Apache-2.0
"""What users build on. A change here is an edit of this file and a line in the changelog."""

from __future__ import annotations

import inspect

import training_exporter
from training_exporter import ExporterConfig, StepSignals, TrainingExporter
from training_exporter.catalog import CATALOG


def test_the_package_exports_what_it_promises() -> None:
    """No more and no less."""
    assert sorted(training_exporter.__all__) == [
        "ExporterConfig", "StepSignals", "TrainingExporter", "__version__",
    ]  # fmt: skip


def test_the_exporters_methods() -> None:
    """The face that scripts and integrations call."""
    public = {name for name, _ in inspect.getmembers(TrainingExporter) if not name.startswith("_")}

    assert public == {
        "add_micro_batch", "attach", "clip_grad_norm_", "close", "count_dropped", "data",
        "evaluating", "finish", "gpu_readings", "histogram_interval", "identify",
        "load_state_dict", "memory", "observe", "observe_compute", "observe_evaluation",
        "observe_forward", "observe_gradients", "observe_histograms", "observe_layers",
        "observe_logged", "observe_magnitudes", "observe_memory", "observe_report", "paused",
        "port", "previous", "saving", "set_nan_filter", "set_peak_flops", "set_state", "snapshot",
        "start", "state_dict", "status", "step", "url", "watch_model",
    }  # fmt: skip


def test_the_settings() -> None:
    """Each is a keyword and an environment variable in somebody's launch script."""
    assert list(ExporterConfig.__dataclass_fields__) == [
        "run", "rank", "serve", "address", "port", "port_tries", "profile", "detectors",
        "ema_beta", "max_logged_values", "gpu_metrics", "gpus", "gpu_interval", "gpu_pcie",
        "peak_flops", "layer_interval", "layer_grouping", "max_layers",
        "gradient_histogram_interval",
        "forensics", "forensics_dir", "forensics_quiet_steps", "forensics_hooks",
        "linger", "ranks", "sd_dir", "sd_address", "blackbox_dir", "summary_dir", "resume_state",
        "pushgateway", "pushgateway_cleanup", "debug_stack", "strict",
    ]  # fmt: skip


def test_the_signals() -> None:
    """Detectors of users read these."""
    assert tuple(StepSignals.__dataclass_fields__) == (
        "step", "timestamp", "loss", "grad_norm", "clip_threshold", "learning_rates",
        "loss_scale", "skipped", "epoch", "max_steps", "tokens", "samples", "step_seconds",
        "data_wait_seconds", "memory_allocated_bytes", "positions", "flops",
    )  # fmt: skip


def test_the_metric_names() -> None:
    """Dashboards and alerts of users are built on them."""
    names = """
        training_run_info training_state training_step training_epoch training_max_steps
        training_eta_seconds training_last_step_timestamp_seconds
        training_last_progress_timestamp_seconds training_loss training_loss_ema
        training_eval_loss training_eval_metric training_logged_value
        training_logging_nan_inf_filter training_grad_norm training_grad_norm_ema
        training_grad_clip_threshold training_grad_clip_ratio training_learning_rate
        training_loss_scale training_clipped_steps_total training_skipped_steps_total
        training_non_finite_steps_total training_non_finite_streak_steps
        training_non_finite_source training_non_finite_reports_total
        training_last_non_finite_timestamp_seconds training_steps_total training_tokens_total
        training_samples_total training_tokens_per_second training_samples_per_second
        training_step_duration_seconds training_data_wait_seconds_total
        training_pause_seconds_total training_compute_seconds_total
        training_positions_total training_padding_ratio training_model_flops_total
        training_model_flops_per_second training_mfu_ratio
        training_layer_grad_norm training_layer_param_norm training_layer_update_ratio
        training_layer_grad_to_param_ratio training_layer_non_finite_total
        training_layer_grad_shard_squares training_layer_param_shard_squares
        training_worst_layer_grad_norm training_first_non_finite_layer_step
        training_layer_step training_layers_folded
        training_gradient_magnitude training_gradient_zero_ratio
        training_gradient_underflow_ratio training_gradient_subnormal_ratio
        training_anomalies_total training_anomaly_active
        training_anomaly_last_step training_anomaly_last_timestamp_seconds
        training_anomaly_last_value training_anomaly_last_threshold
        training_detector_ready training_exporter_build_info training_exporter_errors_total
        training_exporter_overhead_seconds_total training_exporter_dropped_observations_total
        training_exporter_dropped_layer_passes_total
        training_exporter_dropped_phases_total
        training_exporter_dropped_series_total training_exporter_collector_success
        training_exporter_collector_duration_seconds
        training_gpu_info training_gpu_utilization_ratio training_gpu_memory_utilization_ratio
        training_gpu_memory_used_bytes training_gpu_memory_free_bytes
        training_gpu_memory_total_bytes training_gpu_power_watts training_gpu_power_limit_watts
        training_gpu_temperature_celsius training_gpu_slowdown_temperature_celsius
        training_gpu_sm_clock_hertz training_gpu_memory_clock_hertz training_gpu_throttled
        training_gpu_performance_state training_gpu_fan_speed_ratio
        training_gpu_energy_joules_total training_gpu_ecc_errors_total
        training_gpu_remapped_rows training_gpu_row_remap_pending training_gpu_row_remap_failed
        training_gpu_retired_pages training_gpu_xid_errors_total
        training_gpu_pcie_bytes_per_second training_gpu_nvlinks training_gpu_nvlink_bytes_total
        training_gpu_failures_total training_gpu_driver_stalled
        training_gpu_last_sample_timestamp_seconds training_gpu_sample_duration_seconds
        training_cuda_memory_allocated_bytes training_cuda_memory_allocated_peak_bytes
        training_cuda_memory_reserved_bytes training_cuda_memory_reserved_peak_bytes
        training_cuda_memory_inactive_split_bytes training_cuda_memory_total_bytes
        training_cuda_alloc_retries_total training_cuda_out_of_memory_total
        training_forward_passes_total training_forward_seconds_total
        training_restarts_total training_run_steps training_run_tokens training_run_samples
        training_exporter_resume_failures_total training_exporter_sink_dropped_total
    """

    assert sorted(CATALOG) == sorted(names.split())
