/* SPDX-License-Identifier: Apache-2.0 */
/* What NVML is asked about a GPU again and again. */
#include "control.h"

#include <string.h>

/* Most of it a MIG device has not, which then says so. */
#define ENTER_WHOLE(function) stand_in_enter_whole(NUMBER_##function, device, &target)

/* A function that hands out one number. */
#define GETTER(function, type, value) \
    EXPORT Result function(Device device, type *out) { \
        struct target target; \
        Result result = ENTER_WHOLE(function); \
        if (result == SUCCESS) *out = (type)(value); \
        return result; \
    }

/* The same, where an argument chooses one of some. */
#define CHOOSER(function, type, values) \
    EXPORT Result function(Device device, unsigned which, type *out) { \
        struct target target; \
        Result result = ENTER_WHOLE(function); \
        if (result != SUCCESS) return result; \
        if (which >= sizeof(values) / sizeof *(values)) return ERROR_INVALID_ARGUMENT; \
        *out = (type)(values)[which]; \
        return SUCCESS; \
    }

/* The same for two numbers. */
#define PAIR(function, type, first_value, second_value) \
    EXPORT Result function(Device device, type *first, type *second) { \
        struct target target; \
        Result result = ENTER_WHOLE(function); \
        if (result != SUCCESS) return result; \
        *first = (type)(first_value); \
        *second = (type)(second_value); \
        return SUCCESS; \
    }

GETTER(nvmlDeviceGetMinorNumber, unsigned, target.index)
GETTER(nvmlDeviceGetPowerUsage, unsigned, target.gpu.power)
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned, target.gpu.enforced_power_limit)
GETTER(nvmlDeviceGetPowerManagementLimit, unsigned, target.gpu.power_limit)
GETTER(nvmlDeviceGetTotalEnergyConsumption, uint64_t, target.gpu.energy)
GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, uint64_t, target.gpu.clock_reasons)
GETTER(nvmlDeviceGetCurrentClocksEventReasons, uint64_t, target.gpu.clock_reasons)
GETTER(nvmlDeviceGetPerformanceState, unsigned, target.gpu.performance_state)
GETTER(nvmlDeviceGetNumFans, unsigned, target.gpu.fans)
GETTER(nvmlDeviceGetComputeMode, unsigned, 0)
GETTER(nvmlDeviceGetPersistenceMode, unsigned, 1)
GETTER(nvmlDeviceGetDisplayActive, unsigned, 0)
GETTER(nvmlDeviceGetDisplayMode, unsigned, 0)
GETTER(nvmlDeviceGetRetiredPagesPendingStatus, unsigned, target.gpu.retired_pending)
GETTER(nvmlDeviceGetMaxMigDeviceCount, unsigned, target.gpu.mig_max)
CHOOSER(nvmlDeviceGetTemperature, unsigned, ((uint64_t[]){target.gpu.temperature}))
CHOOSER(nvmlDeviceGetTemperatureThreshold, unsigned, target.gpu.thresholds)
CHOOSER(nvmlDeviceGetClockInfo, unsigned, target.gpu.clocks)
CHOOSER(nvmlDeviceGetMaxClockInfo, unsigned, target.gpu.max_clocks)
PAIR(nvmlDeviceGetCudaComputeCapability, int, target.gpu.compute_major, target.gpu.compute_minor)
PAIR(nvmlDeviceGetEncoderUtilization, unsigned, target.gpu.utilization_encoder, 167000)
PAIR(nvmlDeviceGetDecoderUtilization, unsigned, target.gpu.utilization_decoder, 167000)
PAIR(nvmlDeviceGetEccMode, unsigned, target.gpu.ecc, target.gpu.ecc_pending)


/* There are several on Windows only. */
static Result driver_model(Function function, Device device) {
    struct target target;
    Result result = stand_in_enter_device(function, device, &target);
    return result == SUCCESS ? ERROR_NOT_SUPPORTED : result;
}

EXPORT Result nvmlDeviceGetDriverModel(Device device, unsigned *current, unsigned *pending) {
    (void)current, (void)pending;
    return driver_model(NUMBER_nvmlDeviceGetDriverModel, device);
}

EXPORT Result nvmlDeviceGetDriverModel_v2(Device device, unsigned *current, unsigned *pending) {
    (void)current, (void)pending;
    return driver_model(NUMBER_nvmlDeviceGetDriverModel_v2, device);
}

/* The speed of no fan is not supported. */
EXPORT Result nvmlDeviceGetFanSpeed(Device device, unsigned *percent) {
    struct target target;
    Result result = ENTER_WHOLE(nvmlDeviceGetFanSpeed);
    if (result != SUCCESS) return result;
    if (!target.gpu.fans) return ERROR_NOT_SUPPORTED;
    *percent = (unsigned)target.gpu.fan_speed;
    return SUCCESS;
}

/* Not even a whole GPU has a utilisation while it is divided. */
EXPORT Result nvmlDeviceGetUtilizationRates(Device device, unsigned rates[2]) {
    struct target target;
    Result result = ENTER_WHOLE(nvmlDeviceGetUtilizationRates);
    if (result != SUCCESS) return result;
    if (target.gpu.mig_mode) return ERROR_NOT_SUPPORTED;
    rates[0] = (unsigned)target.gpu.utilization_gpu;
    rates[1] = (unsigned)target.gpu.utilization_memory;
    return SUCCESS;
}

struct temperature {
    unsigned version, sensor;
    int temperature;
};

EXPORT Result nvmlDeviceGetTemperatureV(Device device, struct temperature *out) {
    struct target target;
    Result result = ENTER_WHOLE(nvmlDeviceGetTemperatureV);
    if (result != SUCCESS) return result;
    if (out->version != (sizeof *out | 1u << 24)) return ERROR_ARGUMENT_VERSION_MISMATCH;
    if (out->sensor) return ERROR_INVALID_ARGUMENT;
    out->temperature = (int)target.gpu.temperature;
    return SUCCESS;
}

/* ---- memory ---- */

struct memory {
    uint64_t total, free, used;
};

struct memory_v2 {
    unsigned version;
    uint64_t total, reserved, free, used;
};

/* The first version counts what the driver reserves as used. */
EXPORT Result nvmlDeviceGetMemoryInfo(Device device, struct memory *out) {
    struct target target;
    Result result = stand_in_enter_device(NUMBER_nvmlDeviceGetMemoryInfo, device, &target);
    if (result != SUCCESS) return result;
    const struct gpu *gpu = &target.gpu;
    out->total = target.mig ? target.mig->memory_total : gpu->memory_total;
    out->used = target.mig ? target.mig->memory_used : gpu->memory_used + gpu->memory_reserved;
    out->free = out->total - out->used;
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetMemoryInfo_v2(Device device, struct memory_v2 *out) {
    struct target target;
    Result result = stand_in_enter_device(NUMBER_nvmlDeviceGetMemoryInfo_v2, device, &target);
    if (result != SUCCESS) return result;
    if (out->version != (sizeof *out | 2u << 24)) return ERROR_ARGUMENT_VERSION_MISMATCH;
    out->total = target.mig ? target.mig->memory_total : target.gpu.memory_total;
    out->used = target.mig ? target.mig->memory_used : target.gpu.memory_used;
    out->reserved = target.mig ? 0 : target.gpu.memory_reserved;
    out->free = out->total - out->used - out->reserved;
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetBAR1MemoryInfo(Device device, struct memory *out) {
    struct target target;
    Result result = ENTER_WHOLE(nvmlDeviceGetBAR1MemoryInfo);
    if (result != SUCCESS) return result;
    out->total = target.gpu.bar1_total;
    out->used = target.gpu.bar1_used;
    out->free = out->total - out->used;
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetTotalEccErrors(Device device, unsigned uncorrected, unsigned ever,
                                          uint64_t *count) {
    struct target target;
    Result result = ENTER_WHOLE(nvmlDeviceGetTotalEccErrors);
    if (result != SUCCESS) return result;
    if (uncorrected > 1 || ever > 1) return ERROR_INVALID_ARGUMENT;
    if (!target.gpu.ecc) return ERROR_NOT_SUPPORTED;
    *count = target.gpu.ecc_errors[uncorrected][ever];
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetRetiredPages(Device device, unsigned cause, unsigned *count,
                                        uint64_t *pages) {
    struct target target;
    Result result = ENTER_WHOLE(nvmlDeviceGetRetiredPages);
    if (result != SUCCESS) return result;
    if (cause > 1) return ERROR_INVALID_ARGUMENT;
    unsigned room = *count, there = (unsigned)target.gpu.retired_pages[cause];
    *count = there;
    if (room < there) return ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < there && pages; i++) pages[i] = 0x1000u * (i + 1);
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetRemappedRows(Device device, unsigned *corrected, unsigned *uncorrected,
                                        unsigned *pending, unsigned *failure) {
    struct target target;
    Result result = ENTER_WHOLE(nvmlDeviceGetRemappedRows);
    if (result != SUCCESS) return result;
    unsigned *out[] = {corrected, uncorrected, pending, failure};
    for (unsigned i = 0; i < 4; i++) *out[i] = (unsigned)target.gpu.remapped_rows[i];
    return SUCCESS;
}

/* ---- links ---- */

#define PCIE_MILLISECONDS 20 /* the real one counts for as long */
#define MAX_NVLINKS 18

EXPORT Result nvmlDeviceGetPcieThroughput(Device device, unsigned direction, unsigned *kib) {
    struct target target;
    Result result = ENTER_WHOLE(nvmlDeviceGetPcieThroughput);
    if (result != SUCCESS) return result;
    if (direction > 1) return ERROR_INVALID_ARGUMENT;
    stand_in_sleep(PCIE_MILLISECONDS);
    *kib = (unsigned)target.gpu.pcie[direction];
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetNvLinkState(Device device, unsigned link, unsigned *up) {
    struct target target;
    Result result = ENTER_WHOLE(nvmlDeviceGetNvLinkState);
    if (result != SUCCESS) return result;
    if (link >= MAX_NVLINKS) return ERROR_INVALID_ARGUMENT;
    if (!target.gpu.nvlinks) return ERROR_NOT_SUPPORTED;
    *up = link < target.gpu.nvlinks;
    return SUCCESS;
}

struct field_value {
    uint32_t field, scope;
    int64_t timestamp, latency;
    unsigned type;
    Result result;
    union {
        unsigned number;
        uint64_t long_number;
    } value;
};

#define FIELD_MEMORY_TEMPERATURE 82
#define FIELD_NVLINK_COUNT 91
#define FIELD_NVLINK_DATA_SENT 138 /* then data received, raw sent, raw received */
#define ALL_LINKS UINT32_MAX
#define TYPE_UNSIGNED 1
#define TYPE_UNSIGNED_LONG_LONG 3

static void answer(struct field_value *field, uint64_t number) {
    field->result = SUCCESS;
    field->type = TYPE_UNSIGNED;
    field->value.number = (unsigned)number;
}

static void answer_nvlink(struct field_value *field, const struct gpu *gpu) {
    uint64_t total = gpu->nvlink_throughput[field->field - FIELD_NVLINK_DATA_SENT];
    if (!gpu->nvlinks || (field->scope != ALL_LINKS && field->scope >= gpu->nvlinks)) return;
    field->result = SUCCESS;
    field->type = TYPE_UNSIGNED_LONG_LONG;
    field->value.long_number = field->scope == ALL_LINKS ? total : total / gpu->nvlinks;
}

static void read_field(struct field_value *field, const struct gpu *gpu) {
    field->result = ERROR_NOT_SUPPORTED;
    field->timestamp = stand_in_microseconds();
    if (field->field == FIELD_MEMORY_TEMPERATURE) answer(field, gpu->memory_temperature);
    if (field->field == FIELD_NVLINK_COUNT) answer(field, gpu->nvlinks);
    if (field->field - FIELD_NVLINK_DATA_SENT < 4) answer_nvlink(field, gpu);
}

EXPORT Result nvmlDeviceGetFieldValues(Device device, int count, struct field_value *fields) {
    struct target target;
    Result result = ENTER_WHOLE(nvmlDeviceGetFieldValues);
    if (result != SUCCESS) return result;
    for (int i = 0; i < count; i++) read_field(&fields[i], &target.gpu);
    return SUCCESS;
}
