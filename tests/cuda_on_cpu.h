// Enough of CUDA to run our kernels on a CPU: a thread is a fiber, and a fiber runs until it has to wait for others.
//
// Warps drift as far apart as barriers let them: each runs until all of its threads wait for the block. Two more choices of
// the machine are left to the caller, because a kernel must not depend on them: which warp and which thread runs first, and
// whether an asynchronous copy happens at once or as late as it may.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
inline int min(int a, int b) { return a < b ? a : b; }

namespace emulator {
struct Copy { void* to; const void* from; bool wanted; };
struct Fiber {
    jmp_buf at;
    ucontext_t begin;
    char* stack;
    bool started, done;
    int waits_for;                            // the passage of the block's barrier that it waits for
    int turn;                                 // which of the two slots its next shuffle uses
    std::vector<std::vector<Copy>> groups;    // of copies on their way, the last one still open
};
struct Barrier { int waiting = 0, passed = 0; };

constexpr size_t STACK = 256 * 1024, MARGIN = 4096;
constexpr unsigned char POISON = 0xff;        // four of them are a NaN
std::vector<Fiber> fibers;
std::vector<Barrier> warps;
Barrier block;
std::vector<float> slots;
std::function<void()> kernel;
jmp_buf scheduler;
int current;
bool late;
char* shared;
struct Index { unsigned x; } thread, grid, size;

inline void give_way() { if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1); }
inline void meet(Barrier& barrier, int members) {
    const int seen = barrier.passed;
    if (++barrier.waiting == members) { barrier.waiting = 0; barrier.passed++; return; }
    if (&barrier == &block) fibers[current].waits_for = seen + 1;
    while (barrier.passed == seen) give_way();
}
inline bool can_run(int i) { return !fibers[i].done && fibers[i].waits_for <= block.passed; }
inline void meet_warp() { meet(warps[current / 32], 32); }
inline void perform(const Copy& copy) { if (copy.wanted) memcpy(copy.to, copy.from, 16); else memset(copy.to, 0, 16); }
inline void body() { kernel(); fibers[current].done = true; _longjmp(scheduler, 1); }

// Returns 0, or 1 if a block wrote beyond its shared memory, or 2 if some of its threads wait for ever; 3 for both.
template <class Kernel> int run(int blocks, int threads, int bytes, bool reversed, bool copies_are_late, Kernel call) {
    kernel = call; late = copies_are_late; size = {(unsigned)threads};
    fibers.clear(); fibers.resize(threads); slots.assign(2 * threads, 0.f);
    for (Fiber& fiber : fibers) fiber.stack = (char*)malloc(STACK);
    shared = (char*)aligned_alloc(128, (bytes + MARGIN + 127) / 128 * 128);
    int broken = 0;
    for (int b = 0; b < blocks; b++) {
        memset(shared, POISON, bytes + MARGIN);
        warps.assign((threads + 31) / 32, Barrier()); block = Barrier(); grid = {(unsigned)b};
        for (Fiber& fiber : fibers) {
            fiber.started = fiber.done = false; fiber.turn = fiber.waits_for = 0; fiber.groups.assign(1, {});
            getcontext(&fiber.begin);
            fiber.begin.uc_stack.ss_sp = fiber.stack; fiber.begin.uc_stack.ss_size = STACK; fiber.begin.uc_link = nullptr;
            makecontext(&fiber.begin, body, 0);
        }
        for (volatile bool any = true; any;) {
            any = false;
            for (volatile int n = 0; n < threads; n = n + 32)
                for (volatile bool again = true; again;) {
                    again = false;
                    for (volatile int i = n; i < n + 32; i = i + 1) {
                        current = reversed ? threads - 1 - i : i;
                        if (!can_run(current)) continue;
                        any = again = true;
                        thread = {(unsigned)current};
                        if (_setjmp(scheduler)) continue;  // it gave way or is done
                        if (fibers[current].started) _longjmp(fibers[current].at, 1);
                        fibers[current].started = true;
                        setcontext(&fibers[current].begin);
                    }
                }
        }
        for (size_t i = 0; i < MARGIN; i++) broken |= (unsigned char)shared[bytes + i] != POISON;
        for (Fiber& fiber : fibers) broken |= fiber.done ? 0 : 2;
    }
    for (Fiber& fiber : fibers) free(fiber.stack);
    free(shared);
    return broken;
}
}  // namespace emulator

#define threadIdx emulator::thread
#define blockIdx emulator::grid
#define blockDim emulator::size

inline void __syncthreads() { emulator::meet(emulator::block, (int)emulator::fibers.size()); }
inline void __syncwarp() { emulator::meet_warp(); }
inline float __shfl_xor_sync(unsigned, float v, int bits) {
    using namespace emulator;
    Fiber& me = fibers[current];
    float* slot = slots.data() + (me.turn ^= 1) * fibers.size();
    slot[current] = v;
    meet_warp();
    return slot[current ^ bits];
}

inline float pow2(float x) { return exp2f(x); }
inline float inverse(float x) { return 1.f / x; }
inline unsigned short to_bfloat16(float x) {  // to the nearest, ties to even
    unsigned bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7fff;
    return (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void copy_16_bytes(void* to, const void* from, bool wanted) {
    using namespace emulator;
    if (late) fibers[current].groups.back().push_back({to, from, wanted}); else perform({to, from, wanted});
}
inline void close_group() { emulator::fibers[emulator::current].groups.push_back({}); }
template <int newest> void wait_for_all_but() {
    auto& groups = emulator::fibers[emulator::current].groups;  // the open one is not waited for
    const int arrived = (int)groups.size() - 1 - newest;
    for (int g = 0; g < arrived; g++) for (auto& copy : groups[g]) emulator::perform(copy);
    if (arrived > 0) groups.erase(groups.begin(), groups.begin() + arrived);
}
inline char* shared_memory() { return emulator::shared; }
