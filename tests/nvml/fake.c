/* A library that answers as NVIDIA's libnvidia-ml.so.1 does, about cards that are not there. What they are stands in
 * the file that FAKE_NVML names, a line each:  GPU <uuid> <mib> [lost]   or, below a card,  MIG <uuid> <mib>  */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int nvmlReturn_t;
typedef struct card { char uuid[96]; unsigned long long mib; int lost; int mig; struct card *parent; int slices; } card;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2_t;

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, LOST = 15 };
static card cards[64];
static int count;

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    char line[256];
    card *last = NULL;
    FILE *file = fopen(getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "", "r");
    if (!file) return 9; /* DRIVER_NOT_LOADED */
    count = 0;
    while (fgets(line, sizeof line, file) && count < 64) {
        card *one = &cards[count];
        char kind[8], more[16] = "";
        memset(one, 0, sizeof *one);
        if (sscanf(line, "%7s %95s %llu %15s", kind, one->uuid, &one->mib, more) < 3) continue;
        one->lost = !strcmp(more, "lost");
        one->mig = !strcmp(more, "mig");
        if (!strcmp(kind, "MIG")) { one->parent = last; last->slices++; } else last = one;
        count++;
    }
    fclose(file);
    return OK;
}
nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
nvmlReturn_t nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(nvmlReturn_t r) { return r == LOST ? "GPU is lost" : r == NOT_FOUND ? "Not Found" : "fake"; }
nvmlReturn_t nvmlSystemGetDriverVersion(char *to, unsigned int n) { snprintf(to, n, "580.00"); return OK; }

static card *nth(int index, card *parent) {
    for (int at = 0; at < count; at++)
        if (cards[at].parent == parent && index-- == 0) return &cards[at];
    return NULL;
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *n) {
    *n = 0;
    for (int at = 0; at < count; at++) *n += !cards[at].parent;
    return OK;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, card **to) {
    *to = nth(index, NULL);
    return !*to ? INVALID : (*to)->lost ? LOST : OK;
}
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, card **to) {
    for (int at = 0; at < count; at++)
        if (!strcmp(cards[at].uuid, uuid)) { *to = &cards[at]; return cards[at].lost ? LOST : OK; }
    return NOT_FOUND;
}
nvmlReturn_t nvmlDeviceGetUUID(card *one, char *to, unsigned int n) { snprintf(to, n, "%s", one->uuid); return OK; }
nvmlReturn_t nvmlDeviceGetName(card *one, char *to, unsigned int n) { (void)one; snprintf(to, n, "Fake H100"); return OK; }
nvmlReturn_t nvmlDeviceGetIndex(card *one, unsigned int *to) {
    for (int at = 0; nth(at, NULL); at++)
        if (nth(at, NULL) == one) { *to = at; return OK; }
    return NOT_FOUND;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(card *one, memory_t *to) {
    to->total = one->mib << 20; to->used = 0; to->free = to->total;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(card *one, memory_v2_t *to) {
    to->total = to->free = one->mib << 20; to->used = to->reserved = 0;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMigMode(card *one, unsigned int *now, unsigned int *pending) {
    if (one->parent) return INVALID;
    if (!one->mig) return NOT_SUPPORTED;
    *now = *pending = 1;
    return OK;
}
nvmlReturn_t nvmlDeviceIsMigDeviceHandle(card *one, unsigned int *to) { *to = one->parent != NULL; return OK; }
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(card *one, unsigned int *to) { *to = one->mig ? 7 : 0; return OK; }
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(card *one, unsigned int index, card **to) {
    *to = nth(index, one);
    return *to ? OK : NOT_FOUND;
}
nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(card *one, card **to) { *to = one->parent; return *to ? OK : INVALID; }
nvmlReturn_t nvmlDeviceGetCpuAffinity(card *one, unsigned int n, unsigned long *to) {
    (void)one;
    memset(to, 0, n * sizeof *to);
    to[0] = 1; /* the first core alone */
    return OK;
}
nvmlReturn_t nvmlDeviceGetUtilizationRates(card *one, unsigned int *to) { (void)one; to[0] = to[1] = 0; return OK; }
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(card *one, unsigned int *n, void *to) { (void)one; (void)to; *n = 0; return OK; }
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(card *one, int *major, int *minor) { (void)one; *major = 9; *minor = 0; return OK; }
