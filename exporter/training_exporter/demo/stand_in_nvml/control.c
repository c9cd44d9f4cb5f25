/* SPDX-License-Identifier: Apache-2.0 */
/* The block of answers: where it comes from, what it holds at first, and the faults in it. */
#define _POSIX_C_SOURCE 200809L

#include "control.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define GIB (1024ull * 1024 * 1024)
#define POLL_MILLISECONDS 2
#define HANDLE_TAG 0x5349ull

static struct control built_in;
static struct control *block = &built_in;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct stat mapped; /* the file behind block, all zero for none */
static unsigned references;
static uint64_t initialised_load; /* which load of the driver was initialised */

struct control *stand_in_block(void) { return block; }

void stand_in_sleep(unsigned milliseconds) {
    struct timespec time = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000};
    nanosleep(&time, NULL);
}

int64_t stand_in_microseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return (int64_t)time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

/* ---- what a block holds at first ---- */

#define STAND_IN_NAME(name) #name,
static const char *const function_names[] = {STAND_IN_FUNCTIONS(STAND_IN_NAME)};

static void default_gpu(struct gpu *gpu, unsigned index) {
    static const struct gpu usual = {
        .name = "Stand-in GPU (no hardware)",
        .pci_device_id = 0x10de0000,
        .compute_major = 8,
        .utilization_gpu = 90, .utilization_memory = 40,
        .memory_total = 16 * GIB, .memory_reserved = GIB / 4, .memory_used = 10 * GIB,
        .bar1_total = GIB / 4, .bar1_used = GIB / 64,
        .power = 200000, .power_limit = 250000, .enforced_power_limit = 250000,
        .energy = 1000000,
        .temperature = 60, .memory_temperature = 70,
        .thresholds = {95, 90, 95, 85},
        .clocks = {1400, 1400, 5000, 1200}, .max_clocks = {1700, 1700, 5000, 1500},
        .clock_reasons = 4, /* software power cap */
        .performance_state = 0,
        .fans = 1, .fan_speed = 50,
        .ecc = 1, .ecc_pending = 1,
        .pcie = {100000, 200000},
        .nvlinks = 4, .nvlink_throughput = {4000, 4000, 5000, 5000},
        .mig_max = MAX_MIG,
    };
    *gpu = usual;
    snprintf(gpu->uuid, TEXT, "GPU-57a4d140-0000-4000-8000-%012u", index);
    snprintf(gpu->serial, TEXT, "%013u", index);
    gpu->pci_bus = 1 + index;
}

void stand_in_defaults(struct control *fresh) {
    memset(fresh, 0, sizeof *fresh);
    fresh->magic = STAND_IN_MAGIC;
    fresh->version = STAND_IN_VERSION;
    fresh->size = sizeof *fresh;
    fresh->driver_loaded = 1;
    fresh->cuda_version = 12040;
    strcpy(fresh->driver_version, "stand-in");
    strcpy(fresh->nvml_version, "stand-in");
    fresh->gpu_count = 2;
    for (unsigned i = 0; i < MAX_GPUS; i++) default_gpu(&fresh->gpus[i], i);
    fresh->function_count = FUNCTION_COUNT;
    for (unsigned i = 0; i < FUNCTION_COUNT; i++)
        snprintf(fresh->functions[i].name, TEXT, "%s", function_names[i]);
}

uint64_t stand_in_size(void) { return sizeof(struct control); }

__attribute__((constructor)) static void fill_built_in(void) {
    stand_in_defaults(&built_in);
    for (unsigned i = 0; i < MAX_GPUS; i++) built_in.gpus[i].moving = 1;
}

/* ---- the file that the environment names ---- */

/* A mapping is never undone: a thread that hangs may still be in it. */
static struct control *map_file(int file, const struct stat *found) {
    if ((size_t)found->st_size < sizeof(struct control)) return NULL;
    struct control *fresh =
        mmap(NULL, sizeof *fresh, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (fresh == MAP_FAILED) return NULL;
    int ours = fresh->magic == STAND_IN_MAGIC && fresh->version == STAND_IN_VERSION &&
               fresh->size == sizeof *fresh;
    return ours ? fresh : NULL;
}

static int attach_file(const char *path) {
    struct stat found = {0};
    int file = open(path, O_RDWR | O_CLOEXEC);
    int there = file >= 0 && fstat(file, &found) == 0;
    if (there && found.st_dev == mapped.st_dev && found.st_ino == mapped.st_ino) {
        close(file);
        return 1;
    }
    struct control *fresh = there ? map_file(file, &found) : NULL;
    if (file >= 0) close(file);
    if (!fresh) return 0;
    block = fresh;
    mapped = found;
    return 1;
}

static int attach(void) {
    const char *path = getenv(STAND_IN_VARIABLE);
    if (path && *path) {
        if (attach_file(path)) return 1;
        fprintf(stderr, "stand-in NVML: %s=%s is no control file of version %u\n",
                STAND_IN_VARIABLE, path, STAND_IN_VERSION);
        return 0;
    }
    block = &built_in;
    memset(&mapped, 0, sizeof mapped);
    return 1;
}

/* ---- beginning a function ---- */

static void hang(struct function *function) {
    struct control *entered = block; /* which another thread may change meanwhile */
    uint64_t waited = 0;
    if (!function->hang) return;
    __atomic_add_fetch(&entered->hanging, 1, __ATOMIC_SEQ_CST);
    while (function->hang == UNTIL_RELEASED || waited < function->hang) {
        stand_in_sleep(POLL_MILLISECONDS);
        waited += POLL_MILLISECONDS;
    }
    __atomic_sub_fetch(&entered->hanging, 1, __ATOMIC_SEQ_CST);
}

static Result begin(Function number) {
    struct function *function = &block->functions[number];
    __atomic_add_fetch(&function->calls, 1, __ATOMIC_SEQ_CST);
    hang(function);
    if (!block->driver_loaded) return ERROR_DRIVER_NOT_LOADED;
    return (Result)function->errors[0];
}

static int initialised(void) { return references && initialised_load == block->driver_loads; }

Result stand_in_init(Function function) {
    pthread_mutex_lock(&lock);
    int first = !initialised();
    int attached = first ? attach() : 1;
    pthread_mutex_unlock(&lock);
    if (!attached) return ERROR_UNKNOWN;
    Result result = begin(function);
    if (result != SUCCESS) return result;
    pthread_mutex_lock(&lock);
    references = initialised() ? references + 1 : 1;
    initialised_load = block->driver_loads;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

Result stand_in_shutdown(void) {
    Result result = stand_in_enter(NUMBER_nvmlShutdown);
    pthread_mutex_lock(&lock);
    if (!initialised())
        references = 0; /* those of a driver that is gone */
    else if (result == SUCCESS)
        references--;
    pthread_mutex_unlock(&lock);
    return result;
}

void stand_in_reset(void) {
    pthread_mutex_lock(&lock);
    references = 0;
    pthread_mutex_unlock(&lock);
}

Result stand_in_enter(Function function) {
    Result result = begin(function);
    return initialised() || result == ERROR_DRIVER_NOT_LOADED ? result : ERROR_UNINITIALIZED;
}

static Result gpu_state(Function function, unsigned index) {
    if (block->gpus[index].lost) return ERROR_GPU_IS_LOST;
    return (Result)block->functions[function].errors[1 + index];
}

Result stand_in_enter_gpu(Function function, unsigned index) {
    Result result = stand_in_enter(function);
    if (result != SUCCESS) return result;
    if (index >= block->gpu_count) return ERROR_INVALID_ARGUMENT;
    return gpu_state(function, index);
}

/* ---- handles ---- */

Device stand_in_handle(unsigned gpu, unsigned mig) {
    uint64_t load = block->driver_loads & 0xffffffff;
    return (Device)(uintptr_t)(HANDLE_TAG << 48 | load << 16 | gpu << 8 | mig);
}

Result stand_in_enter_device(Function function, Device device, struct target *target) {
    Result result = stand_in_enter(function);
    if (result != SUCCESS) return result;
    unsigned index = (uintptr_t)device >> 8 & 0xff, mig = (uintptr_t)device & 0xff;
    if (device != stand_in_handle(index, mig) || index >= block->gpu_count)
        return ERROR_INVALID_ARGUMENT;
    target->index = index;
    target->gpu = block->gpus[index];
    if (mig > target->gpu.mig_count) return ERROR_INVALID_ARGUMENT;
    target->mig_index = mig ? mig - 1 : 0;
    target->mig = mig ? &target->gpu.mig[mig - 1] : NULL;
    if (target->gpu.moving) stand_in_move(&target->gpu, index);
    return gpu_state(function, index);
}

Result stand_in_enter_whole(Function function, Device device, struct target *target) {
    Result result = stand_in_enter_device(function, device, target);
    return result == SUCCESS && target->mig ? ERROR_NOT_SUPPORTED : result;
}

/* ---- numbers that move ---- */

#define HALF_PERIOD 20.0 /* seconds from little to much work */

/* From 0 to 1 and back, smoothly; a cubic, so that its integral is a formula and needs no state. */
static double wave(double seconds) {
    double halves = seconds / HALF_PERIOD;
    uint64_t whole = (uint64_t)halves;
    double x = halves - (double)whole;
    double rising = x * x * (3 - 2 * x);
    return whole % 2 ? 1 - rising : rising;
}

static double wave_integral(double seconds) {
    double halves = seconds / HALF_PERIOD;
    uint64_t whole = (uint64_t)halves;
    double x = halves - (double)whole;
    double rising = x * x * x * (1 - x / 2);
    return HALF_PERIOD * ((double)whole / 2 + (whole % 2 ? x - rising : rising));
}

static double now(void) {
    struct timespec time;
    if (block->time) return (double)block->time / 1e3;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

void stand_in_move(struct gpu *gpu, unsigned index) {
    double seconds = now() + 9.0 * index; /* each GPU is at another point of the wave */
    double load = wave(seconds), limit = (double)gpu->enforced_power_limit;
    gpu->utilization_gpu = (uint64_t)(60 + 39 * load);
    gpu->utilization_memory = (uint64_t)(25 + 30 * load);
    gpu->power = (uint64_t)(limit * (0.5 + 0.45 * load));
    gpu->energy = (uint64_t)(limit * (0.5 * seconds + 0.45 * wave_integral(seconds)));
    gpu->temperature = (uint64_t)(52 + 22 * load + index);
    gpu->memory_temperature = gpu->temperature + 8;
    gpu->memory_used = (uint64_t)((double)gpu->memory_total * (0.6 + 0.1 * load));
    gpu->clocks[0] = gpu->clocks[1] = (uint64_t)((double)gpu->max_clocks[1] * (0.98 - 0.1 * load));
    gpu->clock_reasons = load > 0.8 ? 4 : 0; /* software power cap */
    gpu->fan_speed = (uint64_t)(35 + 35 * load);
    gpu->pcie[0] = (uint64_t)(400e3 * load);
    gpu->pcie[1] = (uint64_t)(900e3 * load);
    for (unsigned i = 0; i < 4; i++)
        gpu->nvlink_throughput[i] = (uint64_t)(2e6 * (i < 2 ? 0.8 : 1) * wave_integral(seconds));
}
