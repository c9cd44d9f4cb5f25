/* SPDX-License-Identifier: Apache-2.0 */
/* What comes and goes on a GPU: events (Xid errors) and processes. */
#include "control.h"

#include <stdlib.h>

#define XID_EVENT 8u
#define NO_INSTANCE UINT32_MAX
#define POLL_MILLISECONDS 2

/* ---- events ---- */

struct event_set {
    uint64_t load; /* of the driver that it was created under */
    uint64_t seen; /* errors of the queue that were looked at */
    unsigned char registered[MAX_GPUS];
};

struct event {
    Device device;
    uint64_t type, data;
    unsigned gpu_instance, compute_instance;
};

EXPORT Result nvmlEventSetCreate(struct event_set **out) {
    Result result = stand_in_enter(NUMBER_nvmlEventSetCreate);
    if (result != SUCCESS) return result;
    struct event_set *set = calloc(1, sizeof *set);
    if (!set) return ERROR_MEMORY;
    set->load = stand_in_block()->driver_loads;
    set->seen = stand_in_block()->xid_count;
    *out = set;
    return SUCCESS;
}

EXPORT Result nvmlEventSetFree(struct event_set *set) {
    Result result = stand_in_enter(NUMBER_nvmlEventSetFree);
    if (result == SUCCESS) free(set);
    return result;
}

EXPORT Result nvmlDeviceGetSupportedEventTypes(Device device, uint64_t *types) {
    struct target target;
    Result result =
        stand_in_enter_whole(NUMBER_nvmlDeviceGetSupportedEventTypes, device, &target);
    if (result == SUCCESS) *types = XID_EVENT;
    return result;
}

EXPORT Result nvmlDeviceRegisterEvents(Device device, uint64_t types, struct event_set *set) {
    struct target target;
    Result result = stand_in_enter_whole(NUMBER_nvmlDeviceRegisterEvents, device, &target);
    if (result != SUCCESS) return result;
    if (types & ~(uint64_t)XID_EVENT) return ERROR_NOT_SUPPORTED;
    if (types) set->registered[target.index] = 1;
    return SUCCESS;
}

/* The next error of a GPU that is registered; those of others are passed over. */
static int next_xid(struct event_set *set, struct event *event) {
    const struct control *block = stand_in_block();
    while (set->seen < block->xid_count) {
        const struct xid *xid = &block->xids[set->seen++ % MAX_XIDS];
        if (xid->gpu >= MAX_GPUS || !set->registered[xid->gpu]) continue;
        *event = (struct event){stand_in_handle((unsigned)xid->gpu, 0), XID_EVENT, xid->code,
                                NO_INSTANCE, NO_INSTANCE};
        return 1;
    }
    return 0;
}

EXPORT Result nvmlEventSetWait_v2(struct event_set *set, struct event *event, unsigned timeout) {
    Result result = stand_in_enter(NUMBER_nvmlEventSetWait_v2);
    if (result != SUCCESS) return result;
    for (unsigned waited = 0;; waited += POLL_MILLISECONDS) {
        if (set->load != stand_in_block()->driver_loads) return ERROR_UNINITIALIZED;
        if (next_xid(set, event)) return SUCCESS;
        if (waited >= timeout) return ERROR_TIMEOUT;
        stand_in_sleep(POLL_MILLISECONDS);
    }
}

/* ---- processes ---- */

struct process_info {
    unsigned pid;
    uint64_t memory;
    unsigned gpu_instance, compute_instance;
};

EXPORT Result nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count,
                                                      struct process_info *out) {
    struct target target;
    Result result =
        stand_in_enter_device(NUMBER_nvmlDeviceGetComputeRunningProcesses_v3, device, &target);
    if (result != SUCCESS) return result;
    unsigned room = *count, there = target.mig ? 0 : (unsigned)target.gpu.process_count;
    *count = there;
    if (room < there) return ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < there; i++) {
        const struct process *process = &target.gpu.processes[i];
        out[i] = (struct process_info){(unsigned)process->pid, process->memory, NO_INSTANCE,
                                       NO_INSTANCE};
    }
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetGraphicsRunningProcesses_v3(Device device, unsigned *count,
                                                       struct process_info *out) {
    struct target target;
    (void)out;
    Result result =
        stand_in_enter_device(NUMBER_nvmlDeviceGetGraphicsRunningProcesses_v3, device, &target);
    if (result == SUCCESS) *count = 0;
    return result;
}

EXPORT Result nvmlDeviceGetProcessUtilization(Device device, void *out, unsigned *count,
                                              uint64_t since) {
    struct target target;
    (void)out, (void)since;
    Result result =
        stand_in_enter_whole(NUMBER_nvmlDeviceGetProcessUtilization, device, &target);
    if (result != SUCCESS) return result;
    *count = 0;
    return ERROR_NOT_FOUND; /* as the real one says where nothing ran */
}
