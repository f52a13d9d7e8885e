/* A libnvidia-ml.so.1 of two GPUs: what it says is told by the environment.
 *   STUB_INIT   what nvmlInitWithFlags returns
 *   STUB_LOG    a file that each call which changes something is written to
 *   STUB_DRAIN  what nvmlDeviceModifyDrainState returns
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu, compute; } process_t;
typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} pci_t;

static char full[] = "full", bare[] = "bare";

static int told(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : SUCCESS;
}

static void note(const char *text, const char *what, unsigned value) {
    const char *path = getenv("STUB_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (log) {
        fprintf(log, "%s %s %u\n", text, what, value);
        fclose(log);
    }
}

int nvmlInitWithFlags(unsigned flags) {
    note("init", "flags", flags);
    return told("STUB_INIT");
}

const char *nvmlErrorString(int code) { return code == 19 ? "In use by another client" : "Stub"; }

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device) {
    if (!strcmp(bus_id, "0000:01:00.0")) *device = full;
    else if (!strcmp(bus_id, "0000:02:00.0")) *device = bare;
    else if (!strcmp(bus_id, "0000:03:00.0")) return GPU_IS_LOST;
    else return NOT_FOUND;
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-%s", (char *)device);
    return SUCCESS;
}

int nvmlDeviceGetSerial(void *device, char *serial, unsigned length) {
    if (device == bare) return NOT_SUPPORTED;
    snprintf(serial, length, "1652823000001");
    return SUCCESS;
}

typedef struct { unsigned long long total, free, used; } memory_t;

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    if (device == bare) return NOT_SUPPORTED;
    *memory = (memory_t){.total = 85520809984ULL, .free = 85520809984ULL};
    return SUCCESS;
}

int nvmlDeviceGetPersistenceMode(void *device, int *mode) {
    *mode = device == full;
    return SUCCESS;
}

static int list(void *device, unsigned *count, process_t *found, const unsigned *pids, unsigned n) {
    unsigned room = *count;
    if (device == bare) return NOT_SUPPORTED;
    *count = n;
    if (room < n || !found) return n ? INSUFFICIENT_SIZE : SUCCESS;
    for (unsigned i = 0; i < n; i++) found[i] = (process_t){.pid = pids[i], .memory = 1 << 20};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_t *found) {
    return list(device, count, found, (const unsigned[]){4242, 0, 17}, 3);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, process_t *found) {
    return list(device, count, found, (const unsigned[]){4242}, 1);
}

int nvmlDeviceSetPersistenceMode(void *device, int mode) {
    if (device == bare) return NOT_SUPPORTED;
    note("persistence", device, mode);
    return SUCCESS;
}

int nvmlDeviceModifyDrainState(pci_t *pci, int state) {
    if (pci->domain != 0x10000 && pci->domain != 0) return NOT_FOUND;
    note("drain", pci->bus_id, state);
    return told("STUB_DRAIN");
}
