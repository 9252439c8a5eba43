// Forwards messages to TensorRT. See reporter.h.
#include "reporter.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <cxxabi.h>
#include <typeinfo>

namespace longllava
{

// TensorRT 11 and TensorRT-RTX put a versioned base below logger and finder, which moves their
// functions. So the headers that this was compiled with need not describe the TensorRT that loads
// it: both layouts are declared here, and the type of the finder at hand says which one holds.
// (Not in an unnamed namespace: the compiler would conclude that nothing implements them.)
namespace plain
{

class Logger
{
public:
    virtual void log(int32_t severity, char const* message) noexcept = 0;

protected:
    ~Logger() = default;
};

class LoggerFinder
{
public:
    virtual Logger* findLogger() = 0;

protected:
    ~LoggerFinder() = default;
};

} // namespace plain

namespace versioned
{

class Logger : public nvinfer1::IVersionedInterface
{
public:
    virtual void log(int32_t severity, char const* message) noexcept = 0;
};

class LoggerFinder : public nvinfer1::IVersionedInterface
{
public:
    virtual Logger* findLogger() = 0;
};

} // namespace versioned

namespace
{

constexpr int32_t kErrorSeverity = 1;

std::atomic<plain::LoggerFinder*> gFinder{nullptr};

bool isVersioned(plain::LoggerFinder const& finder) noexcept
{
    std::type_info const& type = typeid(finder);
    auto const* const derived = dynamic_cast<abi::__si_class_type_info const*>(&type);
    return derived != nullptr && std::strstr(derived->__base_type->name(), "v_1_0") != nullptr;
}

template <typename Finder>
bool logWith(Finder& finder, char const* message) noexcept
{
    auto* const logger = finder.findLogger();
    if (logger != nullptr)
    {
        logger->log(kErrorSeverity, message);
    }
    return logger != nullptr;
}

bool log(char const* message) noexcept
{
    plain::LoggerFinder* const finder = gFinder.load();
    if (finder == nullptr)
    {
        return false;
    }
    return isVersioned(*finder)
        ? logWith(reinterpret_cast<versioned::LoggerFinder&>(*finder), message)
        : logWith(*finder, message);
}

} // namespace

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    gFinder.store(reinterpret_cast<plain::LoggerFinder*>(finder));
}

int32_t report(Status const& status) noexcept
{
    if (status.ok())
    {
        return 0;
    }
    if (!log(status.message().c_str()))
    {
        std::fprintf(stderr, "longllava plugins: %s\n", status.message().c_str());
    }
    return -1;
}

} // namespace longllava
