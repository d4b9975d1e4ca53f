/* SPDX-License-Identifier: MIT OR GPL-2.0
 *
 * Allocations of programs, on uprobes at the functions of their allocator.
 *
 * What a call was asked for stands in its registers, where its block is in those of its return; in between it waits in
 * `calls`, one for each thread. An allocator that calls itself (operator new that calls malloc) is one call: the inner
 * one is known by its deeper stack. A call that never returned (an exception, longjmp) is known by the same: the next
 * call does not lie below it.
 *
 * A release counts when it is called, an allocation when it returns: in between no other thread can have the address.
 * realloc takes its old block out when it is called and puts it back if it fails.
 *
 * The stack is walked by frame pointers in the kernel, or copied and unwound outside (src/user/stacks.rs).
 */
#include "blocks.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum { P_ALLOC, P_FREE };
enum { OUT_POINTER = 1, FAILS_BY_CODE = 2 };

/* Copies of stacks are as long as the program's own stack allows, in these steps. */
#define COPY_BYTES 16384

struct call {
	u64 sp;
	u64 requested;
	u64 out; /* where posix_memalign puts the address */
	u64 key; /* of the block that realloc took out, 0 for none */
	struct block old;
};

struct stack_copy {
	u64 key;
	u64 born_ns;
	u64 weight;
	u64 requested;
	u64 ip, sp, bp, bx, r12, r13, r14, r15;
	u32 tgid;
	u32 bytes;
	u8 data[COPY_BYTES];
};

const volatile u32 copies_stacks = 1;

struct {
	MAP_TYPE(MAP_HASH);
	MAP_ENTRIES(65536);
	MAP_KEY(u64);
	MAP_VALUE(struct call);
} calls SEC(".maps");

struct {
	MAP_TYPE(MAP_RINGBUF);
	MAP_ENTRIES(16777216);
} stack_copies SEC(".maps");

INLINE struct state *state_of(u32 program)
{
	return map_lookup(&states, &program);
}

/* Addresses are multiples of eight below 2^47; numbers of processes are below 2^22, of which the low 20 bits are kept. */
INLINE u64 key_of(u64 address)
{
	return (address >> 3) | ((current_pid_tgid() >> 32) << 44);
}

INLINE int begin_call(struct registers *ctx, u64 requested, u64 out, u64 old)
{
	u64 id = current_pid_tgid();
	struct call *open = map_lookup(&calls, &id);
	if (open) {
		if (ctx->sp < open->sp)
			return 0;
		lose(LOST_CALL, 1);
	}
	if (!is_wanted(id))
		return 0;
	struct call call = { .sp = ctx->sp, .requested = requested, .out = out };
	if (old) {
		u64 key = key_of(old);
		if (maybe[filter_slot(key)]) {
			struct block *block = map_lookup(&blocks, &key);
			if (block) {
				call.old = *block;
				call.key = key;
				forget(key, block);
			}
		}
	}
	if (map_update(&calls, &id, &call, ANY))
		lose(LOST_CALL, 1);
	return 0;
}

INLINE void send_stack(struct registers *ctx, u64 key, struct block *block)
{
	struct stack_copy *copy = ring_reserve(&stack_copies, sizeof(*copy), 0);
	if (!copy) {
		lose(LOST_STACK, 1);
		return;
	}
	copy->key = key;
	copy->born_ns = block->born_ns;
	copy->weight = block->weight;
	copy->requested = block->requested;
	copy->ip = ctx->ip;
	copy->sp = ctx->sp;
	copy->bp = ctx->bp;
	copy->bx = ctx->bx;
	copy->r12 = ctx->r12;
	copy->r13 = ctx->r13;
	copy->r14 = ctx->r14;
	copy->r15 = ctx->r15;
	copy->tgid = block->tgid;
	const void *from = (void *)ctx->sp;
	/* Behind the outermost frame the stack ends, and a copy that reaches further fails as a whole. */
	if (!read_user(copy->data, 16384, from))
		copy->bytes = 16384;
	else if (!read_user(copy->data, 8192, from))
		copy->bytes = 8192;
	else if (!read_user(copy->data, 4096, from))
		copy->bytes = 4096;
	else if (!read_user(copy->data, 2048, from))
		copy->bytes = 2048;
	else if (!read_user(copy->data, 1024, from))
		copy->bytes = 1024;
	else if (!read_user(copy->data, 512, from))
		copy->bytes = 512;
	else
		copy->bytes = 0;
	ring_submit(copy, 0);
}

INLINE int end_call(struct registers *ctx, u32 how)
{
	u64 id = current_pid_tgid();
	struct call *open = map_lookup(&calls, &id);
	/* The return address is off the stack now. */
	if (!open || open->sp + 8 != ctx->sp)
		return 0;
	struct call call = *open;
	map_delete(&calls, &id);
	struct state *state = state_of(P_ALLOC);
	if (!state)
		return 0;
	u64 address = ctx->ax;
	if (how & OUT_POINTER) {
		address = 0;
		if (!ctx->ax)
			read_user(&address, sizeof(address), (void *)call.out);
	}
	if (!address) {
		/* A realloc that fails keeps its block, one to zero bytes releases it. */
		if (call.key && call.requested) {
			u64 key = call.key;
			if (!map_update(&blocks, &key, &call.old, NOEXIST))
				atomic_add(&maybe[filter_slot(key)], 1);
		}
		return 0;
	}
	u64 key = key_of(address);
	if (maybe[filter_slot(key)]) {
		struct block *stale = map_lookup(&blocks, &key);
		if (stale)
			supersede(key, stale);
	}
	state->events++;
	state->bytes += call.requested;
	if (prints_events)
		print_event(state, USER, 0, address, call.requested, call.requested, ctx->ip, 0);
	u64 weight = sampled(state, call.requested);
	if (!weight)
		return 0;
	struct block block = {
		.requested = call.requested, .usable = call.requested, .weight = weight, .kind = USER, .site = USER,
	};
	if (!copies_stacks) {
		long bytes = get_stack(ctx, state->ips, sizeof(state->ips), 1 << 8 /* of the program */);
		u32 frames = (u64)bytes >> 3;
		if (bytes <= 0 || frames > MOST_FRAMES) {
			lose(LOST_STACK, 1);
			state->ips[0] = ctx->ip;
			frames = 1;
		} else if (frames == MOST_FRAMES) {
			lose(LOST_STACK_CUT, 1);
		}
		/* Where a program is mapped differs from process to process. */
		u64 hash = id >> 32;
		for (u32 i = 0; i < MOST_FRAMES; i++) {
			if (i >= frames)
				break;
			hash = (hash ^ state->ips[i]) * 0xFF51AFD7ED558CCDULL;
			hash ^= hash >> 32;
		}
		block.site = site_number(state, hash, frames, USER, id >> 32, 0);
	}
	complete(state, &block, id, now_ns());
	enter(key, &block);
	if (copies_stacks)
		send_stack(ctx, key, &block);
	return 0;
}

INLINE int release(u64 address, u64 call_site)
{
	if (!address)
		return 0;
	struct state *state = state_of(P_FREE);
	if (!state)
		return 0;
	state->events++;
	if (prints_events && is_wanted(current_pid_tgid()))
		print_event(state, USER, 1, address, 0, 0, call_site, 0);
	u64 key = key_of(address);
	if (maybe[filter_slot(key)]) {
		struct block *block = map_lookup(&blocks, &key);
		if (block) {
			forget(key, block);
			return 0;
		}
	}
	state->unknown++;
	return 0;
}

INLINE u64 product(u64 count, u64 bytes)
{
	return count * bytes;
}

SEC("uprobe") int call_size(struct registers *ctx) /* malloc(size) */
{
	return begin_call(ctx, ctx->di, 0, 0);
}
SEC("uprobe") int call_count(struct registers *ctx) /* calloc(count, size) */
{
	return begin_call(ctx, product(ctx->di, ctx->si), 0, 0);
}
SEC("uprobe") int call_second(struct registers *ctx) /* memalign(alignment, size) */
{
	return begin_call(ctx, ctx->si, 0, 0);
}
SEC("uprobe") int call_out(struct registers *ctx) /* posix_memalign(out, alignment, size) */
{
	return begin_call(ctx, ctx->dx, ctx->di, 0);
}
SEC("uprobe") int call_resize(struct registers *ctx) /* realloc(block, size) */
{
	return begin_call(ctx, ctx->si, 0, ctx->di);
}
SEC("uprobe") int call_resize_count(struct registers *ctx) /* reallocarray(block, count, size) */
{
	return begin_call(ctx, product(ctx->si, ctx->dx), 0, ctx->di);
}
SEC("uretprobe") int end_block(struct registers *ctx)
{
	return end_call(ctx, 0);
}
SEC("uretprobe") int end_out(struct registers *ctx)
{
	return end_call(ctx, OUT_POINTER);
}
SEC("uprobe") int call_free(struct registers *ctx) /* free(block), operator delete, dallocx */
{
	return release(ctx->di, ctx->ip);
}
