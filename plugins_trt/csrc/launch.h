// What one call of an operator consists of on a GPU: kernels, grids, arguments; and its execution.
// Mirrors plugins_trt/launch_plans/plan.py. Knows neither TensorRT nor operators.
#pragma once

#include "status.h"

#include <array>
#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace longllava
{

constexpr int64_t ceilDiv(int64_t size, int64_t block) noexcept
{
    return (size + block - 1) / block;
}

//! A kernel's arguments in order, eight bytes each; the driver reads of each what its type takes.
class Arguments
{
public:
    //! Slots that stay zero serve as Triton's two scratch pointers, which no kernel here uses.
    static constexpr size_t kCapacity = 20;

    Arguments& pointer(void const* value) noexcept
    {
        return push(reinterpret_cast<uint64_t>(value));
    }

    Arguments& int32(int64_t value) noexcept
    {
        mFits = mFits && value >= 0 && value <= INT32_MAX;
        return push(static_cast<uint64_t>(value));
    }

    Arguments& int64(int64_t value) noexcept
    {
        return push(static_cast<uint64_t>(value));
    }

    //! Whether every `int32` was one.
    bool fit() const noexcept
    {
        return mFits;
    }

    uint64_t const* slots() const noexcept
    {
        return mSlots.data();
    }

private:
    Arguments& push(uint64_t value) noexcept
    {
        mSlots[mCount++] = value;
        return *this;
    }

    std::array<uint64_t, kCapacity> mSlots{};
    size_t mCount{0};
    bool mFits{true};
};

using KernelName = std::array<char, 48>;

//! Format a kernel's name as `Variant.name` has it, without allocating.
__attribute__((format(printf, 1, 2))) KernelName kernelName(char const* format, ...) noexcept;

struct Launch
{
    KernelName kernel;
    std::array<int64_t, 3> grid;
    Arguments arguments;
};

//! The launches of one call, in stream order.
class Plan
{
public:
    //! Append a launch and return its arguments, to be filled.
    Arguments& add(KernelName const& kernel, int64_t x, int64_t y = 1, int64_t z = 1) noexcept
    {
        Launch& launch = mLaunches[mCount++];
        launch = {kernel, {x, y, z}, {}};
        return launch.arguments;
    }

    Launch const* begin() const noexcept
    {
        return mLaunches.data();
    }

    Launch const* end() const noexcept
    {
        return mLaunches.data() + mCount;
    }

private:
    std::array<Launch, 6> mLaunches{};
    size_t mCount{0};
};

//! Hands out parts of a workspace; with a null base it only adds up their sizes.
class Workspace
{
public:
    static constexpr size_t kAlignment = 256;

    explicit Workspace(void* base) noexcept
        : mBase{static_cast<char*>(base)}
    {
    }

    void* take(int64_t bytes) noexcept
    {
        void* const part = mBase == nullptr ? nullptr : mBase + mUsed;
        mUsed += static_cast<size_t>(ceilDiv(bytes, kAlignment)) * kAlignment;
        return part;
    }

    size_t used() const noexcept
    {
        return mUsed;
    }

private:
    char* mBase;
    size_t mUsed{0};
};

//! Launch everything on a stream of the current context; does not synchronise.
Status run(Plan const& plan, CUstream_st* stream);

} // namespace longllava
