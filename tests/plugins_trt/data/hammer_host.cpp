// Calls the C interface from several threads, as told on stdin, for builds with sanitizers.
//
//     hammer_host THREADS ROUNDS [FUNCTION-THAT-FAILS]
//
// A line a call: operator, attributes with ';' for a space or '-', workspace, stream, inputs, outputs; then for each
// tensor type, rank, dims (as many as the next number says), data. Prints each call's status.
#include "longllava_plugins.h"

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace
{

struct Call
{
    std::string op;
    std::string attributes;
    uint64_t workspace;
    uint64_t stream;
    std::vector<LongllavaTensor> inputs;
    std::vector<LongllavaTensor> outputs;
};

void* address(uint64_t number)
{
    return reinterpret_cast<void*>(number);
}

Call parse(std::string const& line)
{
    std::istringstream words{line};
    Call call{};
    size_t inputs = 0;
    size_t outputs = 0;
    words >> call.op >> call.attributes >> call.workspace >> call.stream >> inputs >> outputs;
    call.attributes = call.attributes == "-" ? "" : call.attributes;
    for (char& c : call.attributes)
    {
        c = c == ';' ? ' ' : c;
    }
    for (size_t i = 0; i < inputs + outputs; ++i)
    {
        LongllavaTensor tensor{};
        size_t listed = 0;
        uint64_t data = 0;
        words >> tensor.type >> tensor.rank >> listed;
        for (size_t axis = 0; axis < listed; ++axis)
        {
            words >> tensor.dims[axis];
        }
        words >> data;
        tensor.data = address(data);
        (i < inputs ? call.inputs : call.outputs).push_back(tensor);
    }
    if (!words)
    {
        std::fprintf(stderr, "cannot read: %s\n", line.c_str());
        std::exit(3);
    }
    return call;
}

int run(Call const& call)
{
    uint64_t bytes = 0;
    longllava_workspace_size(call.op.c_str(), call.attributes.c_str(), call.inputs.data(),
        static_cast<int32_t>(call.inputs.size()), &bytes);
    int const status = longllava_enqueue(call.op.c_str(), call.attributes.c_str(),
        call.inputs.data(), static_cast<int32_t>(call.inputs.size()), call.outputs.data(),
        static_cast<int32_t>(call.outputs.size()), address(call.workspace), address(call.stream));
    if (status != 0 && std::string{longllava_last_error()}.empty())
    {
        std::fprintf(stderr, "%s failed and said nothing\n", call.op.c_str());
        std::exit(4);
    }
    return status;
}

} // namespace

int main(int argc, char** argv)
{
    int const threads = argc > 1 ? std::atoi(argv[1]) : 1;
    int const rounds = argc > 2 ? std::atoi(argv[2]) : 1;
    void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (driver == nullptr)
    {
        std::fprintf(stderr, "no stand-in: %s\n", dlerror());
        return 2;
    }
    using Configure = void (*)(int, int, int, uint64_t, char const*, int);
    using Take = int (*)(void const**);
    reinterpret_cast<Configure>(dlsym(driver, "stand_in_configure"))(
        8, 0, 108, 0x1000, argc > 3 ? argv[3] : "", 700);
    auto const take = reinterpret_cast<Take>(dlsym(driver, "stand_in_take"));

    std::vector<Call> calls;
    for (std::string line; std::getline(std::cin, line);)
    {
        calls.push_back(parse(line));
    }
    std::vector<std::vector<int>> statuses(threads, std::vector<int>(calls.size()));
    std::vector<std::thread> running;
    for (int thread = 0; thread < threads; ++thread)
    {
        running.emplace_back([&, thread] {
            for (int round = 0; round < rounds; ++round)
            {
                for (size_t i = 0; i < calls.size(); ++i)
                {
                    statuses[thread][i] = run(calls[i]);
                    void const* launches = nullptr;
                    take(&launches);
                }
            }
        });
    }
    for (std::thread& thread : running)
    {
        thread.join();
    }
    for (std::vector<int> const& found : statuses)
    {
        for (int const status : found)
        {
            std::printf("%d ", status);
        }
        std::printf("\n");
    }
    return 0;
}
