// The few entries of the CUDA driver API that a launch needs, found at run time.
// libcuda.so.1 is opened on first use: this library loads, and engines are built, where there is
// none. Must not know kernels or operators.
#pragma once

#include "status.h"

#include <cstddef>
#include <cstdint>

struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUstream_st;

namespace longllava
{

using CudaContext = CUctx_st*;
using CudaModule = CUmod_st*;
using CudaFunction = CUfunc_st*;
using CudaStream = CUstream_st*;
//! CUresult; 0 is success.
using CudaResult = int;

//! Values of the driver API's enums, from its stable ABI.
constexpr int kAttributeMultiprocessorCount = 16;
constexpr int kAttributeComputeCapabilityMajor = 75;
constexpr int kAttributeComputeCapabilityMinor = 76;
constexpr int kFunctionMaxDynamicSharedBytes = 8;
constexpr int kJitErrorLog = 5;
constexpr int kJitErrorLogBytes = 6;

struct CudaDriver
{
    CudaResult (*init)(unsigned flags);
    CudaResult (*contextGetCurrent)(CudaContext* context);
    CudaResult (*contextGetDevice)(int* device);
    //! Null before CUDA 12.
    CudaResult (*contextGetId)(CudaContext context, unsigned long long* id);
    CudaResult (*deviceGetAttribute)(int* value, int attribute, int device);
    CudaResult (*moduleLoadDataEx)(
        CudaModule* module, void const* image, unsigned count, int* options, void** values);
    CudaResult (*moduleGetFunction)(CudaFunction* function, CudaModule module, char const* name);
    CudaResult (*functionSetAttribute)(CudaFunction function, int attribute, int value);
    CudaResult (*launchKernel)(CudaFunction function, unsigned gridX, unsigned gridY,
        unsigned gridZ, unsigned blockX, unsigned blockY, unsigned blockZ, unsigned sharedBytes,
        CudaStream stream, void** arguments, void** extra);
    CudaResult (*getErrorName)(CudaResult result, char const** name);

    //! Success, or a failure that names the call and what the driver said.
    Status check(CudaResult result, char const* call) const;
};

//! Open the driver once a process; what failed is tried again at the next call.
Status openCudaDriver(CudaDriver const*& driver);

} // namespace longllava
