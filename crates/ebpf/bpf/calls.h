/* SPDX-License-Identifier: MIT OR GPL-2.0
 *
 * What our programs need of the BPF instruction set: types, map definitions, and the kernel's helpers by number.
 * Numbers are of the kernel's stable interface; source: `enum bpf_func_id` in linux/bpf.h. Nothing newer than 5.8.
 */
#ifndef LEAKSCOPE_CALLS_H
#define LEAKSCOPE_CALLS_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
/* A function of its own, which the verifier looks at once, whatever its callers know of their arguments. */
#define FUNCTION __attribute__((noinline))
#define KERNEL_TYPE __attribute__((preserve_access_index))
#define offset_of(type, member) __builtin_offsetof(type, member)
/* Keeps a value in a register as the verifier knows it, where clang would compute it anew and lose the bounds. */
#define keep(value) asm volatile("" : "+r"(value))
#define atomic_add(pointer, value) ((void)__sync_fetch_and_add(pointer, value))

/* Map definitions in the form that loaders read from BTF. */
#define MAP_TYPE(number) int (*type)[number]
#define MAP_ENTRIES(number) int (*max_entries)[number]
#define MAP_KEY(what) typeof(what) *key
#define MAP_VALUE(what) typeof(what) *value
#define MAP_KEY_SIZE(number) int (*key_size)[number]
#define MAP_VALUE_SIZE(number) int (*value_size)[number]
#define MAP_FLAGS(number) int (*map_flags)[number]
#define MMAPABLE 1024

enum {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PERCPU_ARRAY = 6,
	MAP_QUEUE = 22,
	MAP_RINGBUF = 27,
};

enum { ANY = 0, NOEXIST = 1, EXIST = 2 };
enum { E_NOENT = 2, E_2BIG = 7, E_BUSY = 16, E_EXIST = 17 };

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*map_delete)(void *map, const void *key) = (void *)3;
static u64 (*now_ns)(void) = (void *)5;
static u32 (*random_u32)(void) = (void *)7;
static u64 (*current_pid_tgid)(void) = (void *)14;
static long (*current_comm)(void *out, u32 bytes) = (void *)16;
static long (*get_stack)(void *ctx, void *out, u32 bytes, u64 flags) = (void *)67;
static u64 (*current_cgroup_id)(void) = (void *)80;
static long (*map_push)(void *map, const void *value, u64 flags) = (void *)87;
static long (*map_pop)(void *map, void *value) = (void *)88;
static long (*read_user)(void *out, u32 bytes, const void *from) = (void *)112;
static long (*read_kernel)(void *out, u32 bytes, const void *from) = (void *)113;
static long (*read_kernel_text)(void *out, u32 bytes, const void *from) = (void *)115;
static u64 (*ticks)(void) = (void *)118; /* of the kernel's clock; a load, not a call */
static u64 (*current_ancestor_cgroup_id)(s32 level) = (void *)123;
static void *(*ring_reserve)(void *ring, u64 bytes, u64 flags) = (void *)131;
static void (*ring_submit)(void *record, u64 flags) = (void *)132;
static void (*ring_discard)(void *record, u64 flags) = (void *)133;

/* struct pt_regs of x86-64; its first members are those that callees keep. */
struct registers {
	u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp;
};

#endif
