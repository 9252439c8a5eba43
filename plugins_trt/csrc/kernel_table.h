// The kernels that were compiled ahead of time, and the one that fits the GPU at hand.
// Must not know what a kernel computes or which arguments it takes.
#pragma once

#include "cuda_driver.h"

namespace longllava
{

//! One kernel for one architecture, as Triton compiled it.
struct KernelImage
{
    char const* name;
    //! The function's name inside the image.
    char const* symbol;
    //! Compute capability, ten times the major number plus the minor.
    int32_t arch;
    //! Whether the cubin uses features of its architecture alone, so that no newer one runs it.
    bool isArchSpecific;
    //! Of one program.
    uint32_t threads;
    uint32_t sharedBytes;
    unsigned char const* cubin;
    //! Text that ends in a zero; null unless any newer GPU may translate it.
    unsigned char const* ptx;
};

//! Generated; sorted by name, then by architecture.
extern KernelImage const kKernelImages[];
extern size_t const kNumKernelImages;

//! A kernel of the current context, ready to be launched.
struct Kernel
{
    CudaFunction function;
    uint32_t threads;
    uint32_t sharedBytes;
};

//! Whether the library holds a kernel, for any architecture.
bool hasKernel(char const* name) noexcept;

//! What a GPU of this compute capability runs: the image and its cubin or its PTX; nulls if none.
struct ImageChoice
{
    KernelImage const* image;
    unsigned char const* code;
};
ImageChoice chooseImage(char const* name, int32_t arch) noexcept;

//! Multiprocessors of the current context's card; the driver is asked once a context.
Status countMultiprocessors(CudaDriver const& driver, int64_t& count);

//! Find a kernel for the current context; loads its module at the first call for that context.
//! Loading allocates memory on the GPU: call once before anything is captured or timed.
Status loadKernel(CudaDriver const& driver, char const* name, Kernel& kernel);

} // namespace longllava
