/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the stand-in for NVIDIA's management library answers, in a block of memory.
 *
 * The block is a file that a test maps too and may change at any time: control.py mirrors this
 * layout field by field. All numbers have 64 bits, so that no compiler pads anything, and are in
 * the units of NVML (milliwatts, MHz, KiB/s), so that a test can write what a broken driver would say.
 */
#ifndef STAND_IN_CONTROL_H
#define STAND_IN_CONTROL_H

#include <stdint.h>

#define STAND_IN_VARIABLE "STAND_IN_NVML_CONTROL"
#define STAND_IN_MAGIC 0x4c4d564e4e495453u /* "STINNVML" as bytes */
#define STAND_IN_VERSION 1u

#define EXPORT __attribute__((visibility("default")))

#define TEXT 96
#define MAX_GPUS 16
#define MAX_MIG 7
#define MAX_PROCESSES 8
#define MAX_XIDS 64
#define MAX_FUNCTIONS 96
#define UNTIL_RELEASED UINT64_MAX

/* Every function that NVML is asked for here, by the name of its symbol. */
#define STAND_IN_FUNCTIONS(X) \
    X(nvmlInit_v2) X(nvmlInitWithFlags) X(nvmlShutdown) \
    X(nvmlSystemGetDriverVersion) X(nvmlSystemGetNVMLVersion) \
    X(nvmlSystemGetCudaDriverVersion) X(nvmlSystemGetCudaDriverVersion_v2) \
    X(nvmlDeviceGetCount_v2) X(nvmlDeviceGetHandleByIndex_v2) \
    X(nvmlDeviceGetHandleByUUID) X(nvmlDeviceGetHandleByPciBusId_v2) \
    X(nvmlDeviceGetIndex) X(nvmlDeviceGetMinorNumber) X(nvmlDeviceGetName) X(nvmlDeviceGetUUID) \
    X(nvmlDeviceGetSerial) X(nvmlDeviceGetPciInfo_v3) X(nvmlDeviceGetCudaComputeCapability) \
    X(nvmlDeviceGetUtilizationRates) X(nvmlDeviceGetEncoderUtilization) \
    X(nvmlDeviceGetDecoderUtilization) \
    X(nvmlDeviceGetMemoryInfo) X(nvmlDeviceGetMemoryInfo_v2) X(nvmlDeviceGetBAR1MemoryInfo) \
    X(nvmlDeviceGetPowerUsage) X(nvmlDeviceGetEnforcedPowerLimit) \
    X(nvmlDeviceGetPowerManagementLimit) X(nvmlDeviceGetTotalEnergyConsumption) \
    X(nvmlDeviceGetTemperature) X(nvmlDeviceGetTemperatureV) \
    X(nvmlDeviceGetTemperatureThreshold) X(nvmlDeviceGetClockInfo) X(nvmlDeviceGetMaxClockInfo) \
    X(nvmlDeviceGetCurrentClocksThrottleReasons) X(nvmlDeviceGetCurrentClocksEventReasons) \
    X(nvmlDeviceGetPerformanceState) X(nvmlDeviceGetFanSpeed) X(nvmlDeviceGetNumFans) \
    X(nvmlDeviceGetComputeMode) X(nvmlDeviceGetPersistenceMode) X(nvmlDeviceGetDisplayActive) \
    X(nvmlDeviceGetDisplayMode) X(nvmlDeviceGetDriverModel) X(nvmlDeviceGetDriverModel_v2) \
    X(nvmlDeviceGetEccMode) X(nvmlDeviceGetTotalEccErrors) X(nvmlDeviceGetRetiredPages) \
    X(nvmlDeviceGetRetiredPagesPendingStatus) X(nvmlDeviceGetRemappedRows) \
    X(nvmlEventSetCreate) X(nvmlDeviceGetSupportedEventTypes) X(nvmlDeviceRegisterEvents) \
    X(nvmlEventSetWait_v2) X(nvmlEventSetFree) \
    X(nvmlDeviceGetPcieThroughput) X(nvmlDeviceGetNvLinkState) X(nvmlDeviceGetFieldValues) \
    X(nvmlDeviceGetComputeRunningProcesses_v3) X(nvmlDeviceGetGraphicsRunningProcesses_v3) \
    X(nvmlDeviceGetProcessUtilization) \
    X(nvmlDeviceGetMigMode) X(nvmlDeviceGetMaxMigDeviceCount) \
    X(nvmlDeviceGetMigDeviceHandleByIndex) X(nvmlDeviceGetDeviceHandleFromMigDeviceHandle) \
    X(nvmlDeviceGetGpuInstanceId) X(nvmlDeviceGetComputeInstanceId) X(nvmlDeviceIsMigDeviceHandle)

#define STAND_IN_NUMBER(name) NUMBER_##name,
typedef enum { STAND_IN_FUNCTIONS(STAND_IN_NUMBER) FUNCTION_COUNT } Function;

/* What NVML answers with. */
typedef enum {
    SUCCESS = 0,
    ERROR_UNINITIALIZED = 1,
    ERROR_INVALID_ARGUMENT = 2,
    ERROR_NOT_SUPPORTED = 3,
    ERROR_NOT_FOUND = 6,
    ERROR_INSUFFICIENT_SIZE = 7,
    ERROR_DRIVER_NOT_LOADED = 9,
    ERROR_TIMEOUT = 10,
    ERROR_GPU_IS_LOST = 15,
    ERROR_MEMORY = 20,
    ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    ERROR_UNKNOWN = 999,
} Result;

typedef void *Device;

struct process {
    uint64_t pid, memory;
};

struct mig {
    char name[TEXT], uuid[TEXT];
    uint64_t gpu_instance, compute_instance, memory_total, memory_used;
};

struct gpu {
    char name[TEXT], uuid[TEXT], serial[TEXT];
    uint64_t lost;   /* every question about it is answered with "GPU is lost" */
    uint64_t moving; /* what follows and can move is computed from the time instead */
    uint64_t pci_domain, pci_bus, pci_device, pci_device_id;
    uint64_t compute_major, compute_minor;
    uint64_t utilization_gpu, utilization_memory, utilization_encoder, utilization_decoder;
    uint64_t memory_total, memory_reserved, memory_used, bar1_total, bar1_used;
    uint64_t power, power_limit, enforced_power_limit, energy; /* milliwatts, millijoules */
    uint64_t temperature, memory_temperature;
    uint64_t thresholds[4]; /* shutdown, slowdown, memory, GPU */
    uint64_t clocks[4], max_clocks[4]; /* graphics, SM, memory, video */
    uint64_t clock_reasons, performance_state;
    uint64_t fans, fan_speed; /* without fans, their speed is not supported */
    uint64_t ecc, ecc_pending;
    uint64_t ecc_errors[2][2]; /* corrected or not; since the driver was loaded, or ever */
    /* A real GPU has either pages or rows, here both: by single-bit errors, by double-bit errors;
     * and corrected, uncorrected, pending, failure. */
    uint64_t retired_pages[2], retired_pending;
    uint64_t remapped_rows[4];
    uint64_t pcie[2]; /* KiB/s sent, received */
    uint64_t nvlinks; /* how many are up; 0 is a GPU without any */
    uint64_t nvlink_throughput[4]; /* KiB: data sent, data received, raw sent, raw received */
    uint64_t process_count;
    struct process processes[MAX_PROCESSES];
    uint64_t mig_mode, mig_pending, mig_max, mig_count;
    struct mig mig[MAX_MIG];
};

struct function {
    char name[TEXT];
    uint64_t calls;
    uint64_t hang;                 /* milliseconds, or UNTIL_RELEASED */
    uint64_t errors[1 + MAX_GPUS]; /* what to answer: for any GPU or none, then for each */
};

struct xid {
    uint64_t gpu, code;
};

struct control {
    uint64_t magic, version, size;
    uint64_t driver_loaded;
    uint64_t driver_loads; /* rises when the driver is loaded anew: what was initialised is not */
    uint64_t hanging;      /* calls that hang at the moment */
    uint64_t time;         /* milliseconds, which numbers that move follow; 0 is the clock */
    char driver_version[TEXT], nvml_version[TEXT];
    uint64_t cuda_version;
    uint64_t gpu_count;
    struct gpu gpus[MAX_GPUS];
    uint64_t xid_count; /* ever; the queue is a ring */
    struct xid xids[MAX_XIDS];
    uint64_t function_count;
    struct function functions[MAX_FUNCTIONS];
};

/* The GPU, or the part of one, that a handle stands for. */
struct target {
    unsigned index;
    struct gpu gpu;
    const struct mig *mig; /* within gpu; NULL for a whole GPU */
    unsigned mig_index;
};

/* Fill a block with two GPUs, and say its size. Exported for control.py: C has the values. */
EXPORT void stand_in_defaults(struct control *block);
EXPORT uint64_t stand_in_size(void);

/* Forget every nvmlInit, as a new process would. */
EXPORT void stand_in_reset(void);

/* The block in use: the file that the environment named at the first nvmlInit, else one within. */
struct control *stand_in_block(void);

Result stand_in_init(Function function);
Result stand_in_shutdown(void);

/* Begin a function that is about no GPU, about a handle, or about one of the GPUs by its index.
 * Counts it, hangs in it if it is to hang, and returns what it has to answer at once, if any. */
Result stand_in_enter(Function function);
Result stand_in_enter_device(Function function, Device device, struct target *target);
Result stand_in_enter_gpu(Function function, unsigned index);

/* The same for what only a whole GPU has: a MIG device answers that it is not supported. */
Result stand_in_enter_whole(Function function, Device device, struct target *target);

/* Handles die with the driver that gave them. MIG devices count from 1; 0 is the GPU itself. */
Device stand_in_handle(unsigned gpu, unsigned mig);

/* Put numbers that belong to this moment into a GPU. */
void stand_in_move(struct gpu *gpu, unsigned index);

void stand_in_sleep(unsigned milliseconds);
int64_t stand_in_microseconds(void); /* since 1970 */

#endif
