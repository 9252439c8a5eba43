/*
 * The C interface of liblongllava_plugins.so: the same kernels and checks that its TensorRT plugins
 * run, for tests and for programs without TensorRT. Plain C; needs no other header of ours.
 */
#ifndef LONGLLAVA_PLUGINS_H
#define LONGLLAVA_PLUGINS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum LongllavaType
{
    LONGLLAVA_FLOAT32 = 0,
    LONGLLAVA_FLOAT16 = 1,
    LONGLLAVA_BFLOAT16 = 2,
    LONGLLAVA_INT8 = 3,
    LONGLLAVA_UINT8 = 4,
    LONGLLAVA_INT32 = 5
};

/* A contiguous tensor on the GPU. */
typedef struct LongllavaTensor
{
    int32_t type;
    int32_t rank;
    int64_t dims[8];
    void* data;
} LongllavaTensor;

/* The plugins' version and the digest of everything that the library was built from. */
char const* longllava_plugins_version(void);

/* Why this thread's last call returned something other than 0; empty before the first failure. */
char const* longllava_last_error(void);

/*
 * Bytes of workspace that one call may need whose dimensions are at most these.
 * attributes: "name=value" by spaces, as the node has them, e.g. "top_k=2 weight_format=int8".
 * inputs: in the node's order; their data is not looked at.
 */
int32_t longllava_workspace_size(char const* op_type, char const* attributes,
    LongllavaTensor const* inputs, int32_t num_inputs, uint64_t* bytes);

/*
 * Launch an operator on a stream (a CUstream or cudaStream_t) of the current context; does not
 * synchronise. Returns 0, or -1 with a message in longllava_last_error.
 */
int32_t longllava_enqueue(char const* op_type, char const* attributes,
    LongllavaTensor const* inputs, int32_t num_inputs, LongllavaTensor const* outputs,
    int32_t num_outputs, void* workspace, void* stream);

#ifdef __cplusplus
}
#endif

#endif
