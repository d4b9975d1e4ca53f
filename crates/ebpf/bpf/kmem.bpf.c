/* SPDX-License-Identifier: MIT OR GPL-2.0
 *
 * Allocations of the kernel, on its own tracepoints.
 *
 * Tracepoints of one name have had other arguments over time, so there is a program for each form, and src/kmem.rs
 * loads those that fit the running kernel's BTF. Arguments are taken as plain numbers, which every kernel allows.
 * Source: include/trace/events/kmem.h, percpu.h and vmalloc.h of 5.8 to 6.18. fentry is used only for what has no tracepoint: calls that take or release many blocks at once, and kfree_rcu.
 *
 * A tracepoint of a release comes before the memory can be handed out again, and that of an allocation before the
 * caller has it. So the events of one address come in order, on whatever processor they are.
 */
#include "stacks.h"

/* Programs by number: the index of their `states`. */
enum {
	P_KMALLOC, P_KMALLOC_NODE, P_SLAB, P_SLAB_NODE, P_PAGE, P_PERCPU, P_VMALLOC, P_BULK,
	P_KFREE, P_SLAB_FREE, P_PAGE_FREE, P_PERCPU_FREE, P_VMALLOC_FREE, P_BULK_FREE, P_RCU_FREE, P_VMALLOC_PROBE,
};

#define MOST_ORDER 10
#define MOST_BULK 128
/* Pointers to per-CPU memory are offsets that may look like addresses of other blocks. */
#define PERCPU_TAG 0x5555000000000000ULL

/* Of the kernel we read no more than this. */
struct kmem_cache {
	unsigned int size;
	unsigned int object_size;
	const char *name;
} KERNEL_TYPE;

const volatile u32 processors = 1;
const volatile u32 page_struct_bytes = 64; /* 0: not a power of two */

char LICENSE[] SEC("license") = "Dual MIT/GPL";

INLINE struct state *state_of(u32 program)
{
	return map_lookup(&states, &program);
}

INLINE int holds_module(struct state *state, u32 frames)
{
	for (u32 i = 0; i < MOST_FRAMES; i++) {
		if (i >= frames)
			break;
		u64 ip = state->ips[i];
		if (ip >= module_low && ip < module_high)
			return 1;
	}
	return 0;
}

/* A pointer as a number: the verifier lets nobody calculate with it, but what comes out of a map is a number. */
INLINE u64 number_of(struct state *state, void *pointer)
{
	state->number = (u64)pointer;
	asm volatile("" ::: "memory");
	return state->number;
}

INLINE void track(void *ctx, struct state *state, u32 program, u64 address, struct block *block, struct kmem_cache *cache,
		  u64 call_site)
{
	struct stack *stack = map_lookup(&stacks, &program);
	if (!stack)
		return;
	u64 number = cache ? number_of(state, cache) : 0;
	stack->hash = (number ^ (block->kind + 1)) * 0x9E3779B97F4A7C15ULL;
	/* The arguments of a kprobe are registers that were saved elsewhere. */
	u64 start = program == P_VMALLOC_PROBE ? 0 : number_of(state, ctx);
	u32 frames = walk(ctx, state, stack, start, program, call_site);
	if (wants_module && !holds_module(state, frames))
		return;
	const char *name = 0;
	if (cache)
		read_kernel(&name, sizeof(name), &cache->name);
	block->site = site_number(state, stack->hash, frames, block->kind, number, name);
	enter(state, address, block);
}

INLINE int on_alloc(void *ctx, u32 program, u32 kind, u64 address, u64 requested, u64 usable, struct kmem_cache *cache,
		    u64 call_site, u32 order)
{
	if (!address)
		return 0;
	struct state *state = state_of(program);
	if (!state)
		return 0;
	u64 key = kind == PERCPU ? address ^ PERCPU_TAG : address;
	state->events++;
	state->bytes += usable;
	/* Whom it is for is asked of samples only: a call of a helper costs more than all of the rest. */
	if (prints_events && is_wanted())
		print_event(state, kind, 0, address, requested, usable, call_site, order);
	u64 weight = sampled(state, usable);
	if (!weight || !is_wanted()) {
		/* An address that is in the table and is handed out again was released where we do not look. Of one that is
		 * tracked again, entering it notices. */
		if (maybe[filter_slot(key)]) {
			struct block *stale = map_lookup(&blocks, &key);
			if (stale)
				supersede(key, stale);
		}
		return 0;
	}
	struct block block = {
		.requested = requested, .usable = usable, .weight = weight, .order = order, .kind = kind,
	};
	track(ctx, state, program, key, &block, cache, call_site);
	return 0;
}

/* Objects have other addresses than pages, of which alone the order must be known. */
INLINE void release(struct state *state, u64 key)
{
	u32 slot = filter_slot(key);
	if (maybe[slot]) {
		long failed = map_delete(&blocks, &key);
		if (!failed) {
			atomic_add(&maybe[slot], (u32)-1);
			return;
		}
		if (failed != -E_NOENT)
			lose(LOST_FREE_BUSY, 1);
	}
	state->unknown++;
}

INLINE int on_free(u32 program, u32 kind, u64 address, u64 call_site)
{
	if (!address)
		return 0;
	struct state *state = state_of(program);
	if (!state)
		return 0;
	state->events++;
	if (prints_events && is_wanted())
		print_event(state, kind, 1, address, 0, 0, call_site, 0);
	release(state, kind == PERCPU ? address ^ PERCPU_TAG : address);
	return 0;
}

/* kmalloc(call_site, ptr, bytes_req, bytes_alloc, gfp_flags[, node]): to 5.18, and from 6.1 */
SEC("raw_tp/kmalloc") int kmalloc_plain(u64 *ctx)
{
	return on_alloc(ctx, P_KMALLOC, KMALLOC, ctx[1], ctx[2], ctx[3], 0, ctx[0], 0);
}
SEC("raw_tp/kmalloc_node") int kmalloc_node_plain(u64 *ctx)
{
	return on_alloc(ctx, P_KMALLOC_NODE, KMALLOC, ctx[1], ctx[2], ctx[3], 0, ctx[0], 0);
}
/* kmalloc(call_site, ptr, cache, bytes_req, bytes_alloc, gfp_flags[, node]): 5.19 and 6.0 */
SEC("raw_tp/kmalloc") int kmalloc_cache(u64 *ctx)
{
	return on_alloc(ctx, P_KMALLOC, KMALLOC, ctx[1], ctx[3], ctx[4], 0, ctx[0], 0);
}
SEC("raw_tp/kmalloc_node") int kmalloc_node_cache(u64 *ctx)
{
	return on_alloc(ctx, P_KMALLOC_NODE, KMALLOC, ctx[1], ctx[3], ctx[4], 0, ctx[0], 0);
}

/* kmem_cache_alloc(call_site, ptr, cache, gfp_flags, node): from 6.1 */
SEC("tp_btf/kmem_cache_alloc") int slab_cache(u64 *ctx)
{
	struct kmem_cache *cache = (void *)ctx[2];
	return on_alloc(ctx, P_SLAB, SLAB, ctx[1], cache->object_size, cache->size, cache, ctx[0], 0);
}
/* The same where typed programs may not look at a pointer to `const void` (6.1): two reads more. */
SEC("raw_tp/kmem_cache_alloc") int slab_cache_raw(u64 *ctx)
{
	struct kmem_cache *cache = (void *)ctx[2];
	unsigned int requested = 0, usable = 0;
	read_kernel(&requested, sizeof(requested), &cache->object_size);
	read_kernel(&usable, sizeof(usable), &cache->size);
	return on_alloc(ctx, P_SLAB, SLAB, ctx[1], requested, usable, cache, ctx[0], 0);
}
/* kmem_cache_alloc(call_site, ptr, bytes_req, bytes_alloc, gfp_flags[, node]): to 5.18 */
SEC("raw_tp/kmem_cache_alloc") int slab_plain(u64 *ctx)
{
	return on_alloc(ctx, P_SLAB, SLAB, ctx[1], ctx[2], ctx[3], 0, ctx[0], 0);
}
SEC("raw_tp/kmem_cache_alloc_node") int slab_node_plain(u64 *ctx)
{
	return on_alloc(ctx, P_SLAB_NODE, SLAB, ctx[1], ctx[2], ctx[3], 0, ctx[0], 0);
}
/* kmem_cache_alloc(call_site, ptr, cache, bytes_req, bytes_alloc, gfp_flags[, node]): 5.19 and 6.0 */
SEC("raw_tp/kmem_cache_alloc") int slab_both(u64 *ctx)
{
	return on_alloc(ctx, P_SLAB, SLAB, ctx[1], ctx[3], ctx[4], (void *)ctx[2], ctx[0], 0);
}
SEC("raw_tp/kmem_cache_alloc_node") int slab_node_both(u64 *ctx)
{
	return on_alloc(ctx, P_SLAB_NODE, SLAB, ctx[1], ctx[3], ctx[4], (void *)ctx[2], ctx[0], 0);
}

SEC("raw_tp/kfree") int kfree_plain(u64 *ctx)
{
	return on_free(P_KFREE, KMALLOC, ctx[1], ctx[0]);
}
SEC("raw_tp/kmem_cache_free") int slab_free(u64 *ctx)
{
	return on_free(P_SLAB_FREE, SLAB, ctx[1], ctx[0]);
}

/* mm_page_alloc(page, order, gfp_flags, migratetype) */
SEC("raw_tp/mm_page_alloc") int page_alloc(u64 *ctx)
{
	u32 order = ctx[1];
	u64 bytes = 4096ULL << (order & 31);
	return on_alloc(ctx, P_PAGE, PAGES, ctx[0], bytes, bytes, 0, 0, order);
}

/* Takes `order` pages off a block of more. Blocks of pages may be split and released piece by piece, in any order. */
INLINE void release_piece(u64 key, struct block *block, u32 order)
{
	u64 bytes = 4096ULL << (order & 31);
	if (block->usable <= bytes) {
		forget(key, block);
		return;
	}
	atomic_add(&block->usable, -bytes);
	atomic_add(&block->requested, -bytes);
}

/* mm_page_free(page, order) */
SEC("raw_tp/mm_page_free") int page_free(u64 *ctx)
{
	u64 page = ctx[0];
	u32 order = ctx[1];
	struct state *state = state_of(P_PAGE_FREE);
	if (!page || !state)
		return 0;
	state->events++;
	if (prints_events && is_wanted())
		print_event(state, PAGES, 1, page, 0, 4096ULL << (order & 31), 0, order);
	if (maybe[filter_slot(page)]) {
		struct block *block = map_lookup(&blocks, &page);
		if (block) {
			if (block->order > order)
				release_piece(page, block, order);
			else
				forget(page, block);
			return 0;
		}
	}
	if (page_struct_bytes) {
#pragma unroll
		for (u32 larger = 1; larger <= MOST_ORDER; larger++) {
			if (larger <= order || !live_orders[larger])
				continue;
			u64 head = page & ~(((u64)page_struct_bytes << larger) - 1);
			if (head == page || !maybe[filter_slot(head)])
				continue;
			struct block *block = map_lookup(&blocks, &head);
			if (block && block->kind == PAGES && block->order >= larger) {
				release_piece(head, block, order);
				return 0;
			}
		}
	}
	state->unknown++;
	return 0;
}

/* percpu_alloc_percpu(call_site, reserved, is_atomic, size, align, base_addr, off, ptr, bytes_alloc, gfp_flags): from 5.18 */
SEC("raw_tp/percpu_alloc_percpu") int percpu_site(u64 *ctx)
{
	return on_alloc(ctx, P_PERCPU, PERCPU, ctx[7], ctx[3], ctx[8], 0, ctx[0], 0);
}
/* percpu_alloc_percpu(reserved, is_atomic, size, align, base_addr, off, ptr): before */
SEC("raw_tp/percpu_alloc_percpu") int percpu_plain(u64 *ctx)
{
	return on_alloc(ctx, P_PERCPU, PERCPU, ctx[6], ctx[2], ctx[2] * processors, 0, 0, 0);
}
/* percpu_free_percpu(base_addr, off, ptr) */
SEC("raw_tp/percpu_free_percpu") int percpu_free(u64 *ctx)
{
	return on_free(P_PERCPU_FREE, PERCPU, ctx[2], 0);
}

/* alloc_vmap_area(addr, size, align, vstart, vend, failed): from 6.3 */
SEC("raw_tp/alloc_vmap_area") int vmap_alloc(u64 *ctx)
{
	if ((u32)ctx[5])
		return 0;
	return on_alloc(ctx, P_VMALLOC, VMALLOC, ctx[0], ctx[1], ctx[1], 0, 0, 0);
}
/* free_vmap_area_noflush(va_start, nr_lazy, nr_lazy_max) */
SEC("raw_tp/free_vmap_area_noflush") int vmap_free(u64 *ctx)
{
	return on_free(P_VMALLOC_FREE, VMALLOC, ctx[0], 0);
}

/* Before 6.3 vmalloc has no tracepoint: where there are kprobes, what __get_vm_area_node returns. */
struct vm_struct {
	void *addr;
	unsigned long size;
	unsigned long flags;
} KERNEL_TYPE;

#define VM_NO_GUARD 0x40
#define GUARD_BYTES 4096

SEC("kretprobe") int vmap_return(struct registers *ctx)
{
	struct vm_struct *area = (void *)ctx->ax;
	u64 address = 0, bytes = 0, flags = 0;
	if (!area || read_kernel(&address, sizeof(address), &area->addr) || read_kernel(&bytes, sizeof(bytes), &area->size) ||
	    read_kernel(&flags, sizeof(flags), &area->flags))
		return 0;
	if (!(flags & VM_NO_GUARD))
		bytes -= GUARD_BYTES;
	return on_alloc(ctx, P_VMALLOC_PROBE, VMALLOC, address, bytes, bytes, 0, 0, 0);
}
/* remove_vm_area(address) */
SEC("kprobe") int vmap_remove(struct registers *ctx)
{
	return on_free(P_VMALLOC_FREE, VMALLOC, ctx->di, 0);
}

/* kmem_cache_alloc_bulk(cache, flags, size, blocks) has no tracepoint. */
SEC("fexit/kmem_cache_alloc_bulk") int bulk_alloc(u64 *ctx)
{
	struct kmem_cache *cache = (void *)ctx[0];
	u64 count = (u32)ctx[4];
	if (!count || (s32)ctx[4] < 0)
		return 0;
	u64 **list = (void *)ctx[3];
	unsigned int requested = cache->object_size, usable = cache->size;
	for (u32 i = 0; i < MOST_BULK; i++) {
		if (i >= count)
			return 0;
		u64 address = 0;
		read_kernel(&address, sizeof(address), list + i);
		on_alloc(ctx, P_BULK, SLAB, address, requested, usable, cache, 0, 0);
	}
	if (count > MOST_BULK)
		lose(LOST_BULK, count - MOST_BULK);
	return 0;
}

/* kmem_cache_free_bulk(cache, size, blocks) has no tracepoint; kfree_bulk is the same without a cache. */
SEC("fentry/kmem_cache_free_bulk") int bulk_free(u64 *ctx)
{
	u64 count = ctx[1];
	u64 **list = (void *)ctx[2];
	for (u32 i = 0; i < MOST_BULK; i++) {
		if (i >= count)
			return 0;
		u64 address = 0;
		read_kernel(&address, sizeof(address), list + i);
		on_free(P_BULK_FREE, SLAB, address, 0);
	}
	if (count > MOST_BULK)
		lose(LOST_BULK, count - MOST_BULK);
	return 0;
}

/* kvfree_call_rcu(head, ptr): what it releases may go back to its cache without another event. */
SEC("fentry/kvfree_call_rcu") int rcu_free(u64 *ctx)
{
	return on_free(P_RCU_FREE, KMALLOC, ctx[1], 0);
}
/* kvfree_call_rcu(head, offset) before 6.4: without a head the second argument is the block. */
SEC("fentry/kvfree_call_rcu") int rcu_free_offset(u64 *ctx)
{
	return on_free(P_RCU_FREE, KMALLOC, ctx[0] ? ctx[0] - ctx[1] : ctx[1], 0);
}
