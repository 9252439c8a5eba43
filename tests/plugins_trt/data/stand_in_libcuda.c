/* A libcuda.so.1 without a GPU: it records what is launched, and fails where it is told to.
 *
 * gcc -shared -fPIC -Wl,-soname,libcuda.so.1 stand_in_libcuda.c -o libcuda.so.1
 */
#include <elf.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LAUNCHES 64

typedef struct Module
{
    unsigned char const* image;
    uint64_t context;
} Module;

typedef struct Function
{
    char name[64];
    Module* module;
    int max_shared;
} Function;

typedef struct Launch
{
    char name[64];
    uint32_t grid[3];
    uint32_t block[3];
    uint32_t shared_bytes;
    uint32_t max_shared;
    uint64_t stream;
    uint64_t context;
    /* 1 if the code is a cubin, 0 if it is PTX. */
    uint32_t is_binary;
    /* Adler-32 of a cubin, up to its section headers. */
    uint32_t checksum;
    uint32_t module_loads;
    uint64_t arguments[24];
} Launch;

static struct
{
    int major;
    int minor;
    int multiprocessors;
    uint64_t context;
    char failing[64];
    int code;
    char counted[32][64];
    int counts[32];
    uint32_t module_loads;
    Launch launches[MAX_LAUNCHES];
    int launched;
} state = {8, 0, 108, 0x1000, "", 0, {""}, {0}, 0, {{{0}}}, 0};

/* Of what changes while calls run. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define FAIL_IF_TOLD(name)                                                                         \
    if (strcmp(state.failing, name) == 0)                                                          \
    return state.code

void stand_in_configure(int major, int minor, int multiprocessors, uint64_t context,
    char const* failing, int code)
{
    state.major = major;
    state.minor = minor;
    state.multiprocessors = multiprocessors;
    state.context = context;
    strncpy(state.failing, failing, sizeof state.failing - 1);
    state.code = code;
}

/* How many arguments a kernel takes: a driver reads that from the code. */
void stand_in_count(int index, char const* name, int count)
{
    strncpy(state.counted[index], name, sizeof state.counted[index] - 1);
    state.counts[index] = count;
}

int stand_in_take(Launch const** launches)
{
    pthread_mutex_lock(&mutex);
    int const launched = state.launched;
    *launches = state.launches;
    state.launched = 0;
    pthread_mutex_unlock(&mutex);
    return launched;
}

int cuInit(unsigned flags)
{
    (void) flags;
    FAIL_IF_TOLD("cuInit");
    return 0;
}

int cuCtxGetCurrent(uint64_t* context)
{
    FAIL_IF_TOLD("cuCtxGetCurrent");
    *context = state.context;
    return 0;
}

int cuCtxGetId(uint64_t context, unsigned long long* id)
{
    *id = context + 1;
    return 0;
}

int cuCtxGetDevice(int* device)
{
    FAIL_IF_TOLD("cuCtxGetDevice");
    *device = 3;
    return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int device)
{
    FAIL_IF_TOLD("cuDeviceGetAttribute");
    if (device != 3)
        return 1;
    switch (attribute)
    {
    case 16: *value = state.multiprocessors; return 0;
    case 75: *value = state.major; return 0;
    case 76: *value = state.minor; return 0;
    default: return 1;
    }
}

int cuModuleLoadDataEx(
    Module** module, unsigned char const* image, unsigned count, int* options, void** values)
{
    if (count == 2 && options[0] == 5 && strcmp(state.failing, "cuModuleLoadDataEx") == 0)
        strcpy(values[0], "ptxas says no");
    FAIL_IF_TOLD("cuModuleLoadDataEx");
    *module = malloc(sizeof **module);
    (*module)->image = image;
    (*module)->context = state.context;
    pthread_mutex_lock(&mutex);
    ++state.module_loads;
    pthread_mutex_unlock(&mutex);
    return 0;
}

static uint32_t checksum(unsigned char const* image)
{
    uint32_t a = 1;
    uint32_t b = 0;
    for (size_t i = 0; i < ((Elf64_Ehdr const*) image)->e_shoff; ++i)
    {
        a = (a + image[i]) % 65521;
        b = (b + a) % 65521;
    }
    return b << 16 | a;
}

static int holds(unsigned char const* image, char const* name)
{
    Elf64_Ehdr const* header = (Elf64_Ehdr const*) image;
    size_t size = header->e_shoff + (size_t) header->e_shnum * header->e_shentsize;
    size_t length = strlen(name);
    if (memcmp(image, ELFMAG, SELFMAG) != 0)
        return strstr((char const*) image, name) != NULL;
    for (size_t i = 0; i + length <= size; ++i)
        if (memcmp(image + i, name, length) == 0)
            return 1;
    return 0;
}

int cuModuleGetFunction(Function** function, Module* module, char const* name)
{
    FAIL_IF_TOLD("cuModuleGetFunction");
    if (!holds(module->image, name))
        return 500;
    *function = calloc(1, sizeof **function);
    strncpy((*function)->name, name, sizeof (*function)->name - 1);
    (*function)->module = module;
    return 0;
}

int cuFuncSetAttribute(Function* function, int attribute, int value)
{
    FAIL_IF_TOLD("cuFuncSetAttribute");
    if (attribute != 8)
        return 1;
    function->max_shared = value;
    return 0;
}

static int record(Function* function, uint32_t const* grid, uint32_t const* block,
    unsigned shared_bytes, uint64_t stream, void** arguments, void** extra)
{
    if (extra != NULL || function->module->context != state.context || state.launched == MAX_LAUNCHES)
        return 1;
    Launch* launch = &state.launches[state.launched++];
    *launch = (Launch){.grid = {grid[0], grid[1], grid[2]},
        .block = {block[0], block[1], block[2]},
        .shared_bytes = shared_bytes,
        .max_shared = (uint32_t) function->max_shared,
        .stream = stream,
        .context = state.context,
        .is_binary = memcmp(function->module->image, ELFMAG, SELFMAG) == 0,
        .module_loads = state.module_loads};
    if (launch->is_binary)
        launch->checksum = checksum(function->module->image);
    strcpy(launch->name, function->name);
    for (int i = 0; i < 32; ++i)
        if (strcmp(state.counted[i], function->name) == 0)
            for (int j = 0; j < state.counts[i]; ++j)
                memcpy(&launch->arguments[j], arguments[j], 8);
    return 0;
}

int cuLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned block_x,
    unsigned block_y, unsigned block_z, unsigned shared_bytes, uint64_t stream, void** arguments,
    void** extra)
{
    FAIL_IF_TOLD("cuLaunchKernel");
    uint32_t const grid[3] = {x, y, z};
    uint32_t const block[3] = {block_x, block_y, block_z};
    pthread_mutex_lock(&mutex);
    int const result = record(function, grid, block, shared_bytes, stream, arguments, extra);
    pthread_mutex_unlock(&mutex);
    return result;
}

int cuGetErrorName(int error, char const** name)
{
    *name = error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OTHER";
    return 0;
}
