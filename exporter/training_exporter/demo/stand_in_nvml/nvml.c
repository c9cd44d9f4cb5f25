/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stand-in for NVIDIA's management library (libnvidia-ml.so.1), for machines without its GPUs.
 *
 * It has the functions, with the layouts, that pynvml calls; what it answers is in control.h. There
 * is no hardware behind it: names and versions say so.
 */
#include "control.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define ENTER(function) stand_in_enter(NUMBER_##function)
#define ENTER_DEVICE(function) stand_in_enter_device(NUMBER_##function, device, &target)

/* ---- the library itself ---- */

/* There is no nvmlInit without a number: PyTorch asks by that name how many GPUs there are, and
 * must not hear of these. */

EXPORT Result nvmlInit_v2(void) { return stand_in_init(NUMBER_nvmlInit_v2); }

EXPORT Result nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return stand_in_init(NUMBER_nvmlInitWithFlags);
}

EXPORT Result nvmlShutdown(void) { return stand_in_shutdown(); }

EXPORT const char *nvmlErrorString(Result result) {
    static _Thread_local char text[64];
    snprintf(text, sizeof text, "error %d of the stand-in NVML", (int)result);
    return text;
}

static Result copy_text(Result result, const char *text, char *out, unsigned length) {
    if (result != SUCCESS) return result;
    if (strlen(text) >= length) return ERROR_INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

EXPORT Result nvmlSystemGetDriverVersion(char *out, unsigned length) {
    Result result = ENTER(nvmlSystemGetDriverVersion);
    return copy_text(result, stand_in_block()->driver_version, out, length);
}

EXPORT Result nvmlSystemGetNVMLVersion(char *out, unsigned length) {
    Result result = ENTER(nvmlSystemGetNVMLVersion);
    return copy_text(result, stand_in_block()->nvml_version, out, length);
}

static Result cuda_version(Function function, int *version) {
    Result result = stand_in_enter(function);
    if (result == SUCCESS) *version = (int)stand_in_block()->cuda_version;
    return result;
}

EXPORT Result nvmlSystemGetCudaDriverVersion(int *version) {
    return cuda_version(NUMBER_nvmlSystemGetCudaDriverVersion, version);
}

EXPORT Result nvmlSystemGetCudaDriverVersion_v2(int *version) {
    return cuda_version(NUMBER_nvmlSystemGetCudaDriverVersion_v2, version);
}

/* ---- which device ---- */

EXPORT Result nvmlDeviceGetCount_v2(unsigned *count) {
    Result result = ENTER(nvmlDeviceGetCount_v2);
    if (result == SUCCESS) *count = (unsigned)stand_in_block()->gpu_count;
    return result;
}

EXPORT Result nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    Result result = stand_in_enter_gpu(NUMBER_nvmlDeviceGetHandleByIndex_v2, index);
    if (result == SUCCESS) *device = stand_in_handle(index, 0);
    return result;
}

/* The state of a GPU that was found, where its own function has begun already. */
static Result found(Function function, unsigned gpu, unsigned mig, Device *device) {
    const struct control *block = stand_in_block();
    if (block->gpus[gpu].lost) return ERROR_GPU_IS_LOST;
    Result result = (Result)block->functions[function].errors[1 + gpu];
    if (result == SUCCESS) *device = stand_in_handle(gpu, mig);
    return result;
}

EXPORT Result nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) {
    const struct control *block = stand_in_block();
    Function function = NUMBER_nvmlDeviceGetHandleByUUID;
    Result result = stand_in_enter(function);
    if (result != SUCCESS) return result;
    for (unsigned i = 0; i < block->gpu_count; i++) {
        const struct gpu *gpu = &block->gpus[i];
        if (!strcmp(gpu->uuid, uuid)) return found(function, i, 0, device);
        for (unsigned m = 0; m < gpu->mig_count; m++)
            if (!strcmp(gpu->mig[m].uuid, uuid)) return found(function, i, m + 1, device);
    }
    return ERROR_NOT_FOUND;
}

static void bus_id(const struct gpu *gpu, unsigned digits, char out[32]) {
    snprintf(out, 32, "%0*X:%02X:%02X.0", (int)digits, (unsigned)gpu->pci_domain,
             (unsigned)gpu->pci_bus, (unsigned)gpu->pci_device);
}

EXPORT Result nvmlDeviceGetHandleByPciBusId_v2(const char *wanted, Device *device) {
    const struct control *block = stand_in_block();
    Function function = NUMBER_nvmlDeviceGetHandleByPciBusId_v2;
    Result result = stand_in_enter(function);
    if (result != SUCCESS) return result;
    for (unsigned i = 0; i < block->gpu_count; i++) {
        char full[32], legacy[32];
        bus_id(&block->gpus[i], 8, full);
        bus_id(&block->gpus[i], 4, legacy);
        if (!strcasecmp(full, wanted) || !strcasecmp(legacy, wanted))
            return found(function, i, 0, device);
    }
    return ERROR_NOT_FOUND;
}

struct pci {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

EXPORT Result nvmlDeviceGetPciInfo_v3(Device device, struct pci *pci) {
    struct target target;
    Result result = stand_in_enter_whole(NUMBER_nvmlDeviceGetPciInfo_v3, device, &target);
    if (result != SUCCESS) return result;
    const struct gpu *gpu = &target.gpu;
    char legacy[32];
    memset(pci, 0, sizeof *pci);
    pci->domain = (unsigned)gpu->pci_domain;
    pci->bus = (unsigned)gpu->pci_bus;
    pci->device = (unsigned)gpu->pci_device;
    pci->device_id = (unsigned)gpu->pci_device_id;
    bus_id(gpu, 8, pci->bus_id);
    bus_id(gpu, 4, legacy);
    memcpy(pci->legacy, legacy, sizeof pci->legacy - 1);
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetIndex(Device device, unsigned *index) {
    struct target target;
    Result result = ENTER_DEVICE(nvmlDeviceGetIndex);
    if (result == SUCCESS) *index = target.mig ? target.mig_index : target.index;
    return result;
}

EXPORT Result nvmlDeviceGetName(Device device, char *out, unsigned length) {
    struct target target;
    Result result = ENTER_DEVICE(nvmlDeviceGetName);
    if (result != SUCCESS) return result;
    return copy_text(result, target.mig ? target.mig->name : target.gpu.name, out, length);
}

EXPORT Result nvmlDeviceGetUUID(Device device, char *out, unsigned length) {
    struct target target;
    Result result = ENTER_DEVICE(nvmlDeviceGetUUID);
    if (result != SUCCESS) return result;
    return copy_text(result, target.mig ? target.mig->uuid : target.gpu.uuid, out, length);
}

EXPORT Result nvmlDeviceGetSerial(Device device, char *out, unsigned length) {
    struct target target;
    Result result = ENTER_DEVICE(nvmlDeviceGetSerial);
    if (result != SUCCESS) return result;
    return copy_text(result, target.gpu.serial, out, length);
}

/* ---- parts of a GPU (MIG) ---- */

EXPORT Result nvmlDeviceGetMigMode(Device device, unsigned *current, unsigned *pending) {
    struct target target;
    Result result = stand_in_enter_whole(NUMBER_nvmlDeviceGetMigMode, device, &target);
    if (result != SUCCESS) return result;
    *current = (unsigned)target.gpu.mig_mode;
    *pending = (unsigned)target.gpu.mig_pending;
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetMigDeviceHandleByIndex(Device device, unsigned index, Device *mig) {
    struct target target;
    Result result =
        stand_in_enter_whole(NUMBER_nvmlDeviceGetMigDeviceHandleByIndex, device, &target);
    if (result != SUCCESS) return result;
    if (!target.gpu.mig_mode) return ERROR_NOT_SUPPORTED;
    if (index >= target.gpu.mig_max) return ERROR_INVALID_ARGUMENT;
    if (index >= target.gpu.mig_count) return ERROR_NOT_FOUND;
    *mig = stand_in_handle(target.index, index + 1);
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device device, Device *whole) {
    struct target target;
    Result result = ENTER_DEVICE(nvmlDeviceGetDeviceHandleFromMigDeviceHandle);
    if (result != SUCCESS) return result;
    if (!target.mig) return ERROR_INVALID_ARGUMENT;
    *whole = stand_in_handle(target.index, 0);
    return SUCCESS;
}

EXPORT Result nvmlDeviceIsMigDeviceHandle(Device device, unsigned *is_mig) {
    struct target target;
    Result result = ENTER_DEVICE(nvmlDeviceIsMigDeviceHandle);
    if (result == SUCCESS) *is_mig = target.mig != NULL;
    return result;
}

EXPORT Result nvmlDeviceGetGpuInstanceId(Device device, unsigned *id) {
    struct target target;
    Result result = ENTER_DEVICE(nvmlDeviceGetGpuInstanceId);
    if (result != SUCCESS) return result;
    if (!target.mig) return ERROR_NOT_SUPPORTED;
    *id = (unsigned)target.mig->gpu_instance;
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetComputeInstanceId(Device device, unsigned *id) {
    struct target target;
    Result result = ENTER_DEVICE(nvmlDeviceGetComputeInstanceId);
    if (result != SUCCESS) return result;
    if (!target.mig) return ERROR_NOT_SUPPORTED;
    *id = (unsigned)target.mig->compute_instance;
    return SUCCESS;
}
