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
#include "table.h"

/* Programs by number: the index of their `states`. */
enum {
	P_KMALLOC, P_KMALLOC_NODE, P_SLAB, P_SLAB_NODE, P_PAGE, P_PERCPU, P_VMALLOC, P_BULK,
	P_KFREE, P_SLAB_FREE, P_PAGE_FREE, P_PERCPU_FREE, P_VMALLOC_FREE, P_BULK_FREE, P_RCU_FREE, P_VMALLOC_CALL,
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

/* Whether the stack goes through the module that is asked for. */
FUNCTION u64 holds_module(u32 program, u64 frames)
{
	struct state *state = map_lookup(&states, &program);
	if (!state)
		return 0;
	u64 found = 0;
	for (u32 i = 0; i < MOST_FRAMES; i++) {
		if (i >= frames)
			break;
		u64 ip = state->ips[i];
		if (ip >= module_low && ip < module_high)
			found = 1;
	}
	return found;
}

/* A pointer as a number: the verifier lets nobody calculate with it, but what comes out of a map is a number. */
INLINE u64 number_of(struct state *state, void *pointer)
{
	state->number = (u64)pointer;
	asm volatile("" ::: "memory");
	return state->number;
}

#define NO_SITE 0xffffffffU
/* Stands for a site that is still to be found. */
#define UNKNOWN_SITE 0xfffffffeU

/* The site of the running allocation; NO_SITE when it is not in the module that is asked for. */
INLINE u32 site_of(void *ctx, struct state *state, u32 program, u32 kind, struct kmem_cache *cache, u64 call_site)
{
	struct stack *stack = map_lookup(&stacks, &program);
	if (!stack)
		return NO_SITE;
	u64 number = cache ? number_of(state, cache) : 0;
	stack->seed = (number ^ (kind + 1)) * 0x9E3779B97F4A7C15ULL;
	stack->hash = stack->seed;
	/* The arguments of a kprobe are registers that were saved elsewhere. */
	u64 start = program == P_VMALLOC_CALL ? 0 : number_of(state, ctx);
	u32 frames = walk(ctx, state, stack, start, program, call_site);
	if (wants_module && !holds_module(program, frames))
		return NO_SITE;
	const char *name = 0;
	if (cache)
		read_kernel(&name, sizeof(name), &cache->name);
	return site_number(state, stack->hash, frames, kind, number, name);
}

INLINE int on_alloc_at(void *ctx, u32 program, u32 kind, u64 address, u64 requested, u64 usable, struct kmem_cache *cache,
		       u64 call_site, u32 order, u32 site)
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
	if (prints_events && is_wanted(current_pid_tgid()))
		print_event(state, kind, 0, address, requested, usable, call_site, order);
	u64 weight = sampled(state, usable);
	u64 ids = weight ? current_pid_tgid() : 0;
	if (!weight || !is_wanted(ids)) {
		/* An address that is in the table and is handed out again was released where we do not look. Of one that is
		 * tracked again, entering it notices. */
		if (!is_unknown(key))
			supersede_block(key);
		return 0;
	}
	struct block block = {
		.requested = requested, .usable = usable, .weight = weight, .order = order, .kind = kind,
	};
	block.site = site == UNKNOWN_SITE ? site_of(ctx, state, program, kind, cache, call_site) : site;
	if (block.site == NO_SITE)
		return 0;
	complete(state, &block, ids, about_now(state));
	keep_block(key, &block);
	return 0;
}

INLINE int on_alloc(void *ctx, u32 program, u32 kind, u64 address, u64 requested, u64 usable, struct kmem_cache *cache,
		    u64 call_site, u32 order)
{
	return on_alloc_at(ctx, program, kind, address, requested, usable, cache, call_site, order, UNKNOWN_SITE);
}

/* Objects have other addresses than pages, of which alone the order must be known. */
INLINE void release(struct state *state, u64 key)
{
	if (is_unknown(key) || !forget_object(key))
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
	if (prints_events && is_wanted(current_pid_tgid()))
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
		forget_block(key, block);
		return;
	}
	atomic_add(&block->usable, -bytes);
	atomic_add(&block->requested, -bytes);
}

/* Releases pages that a block of so many begins with or holds; gives whether it did. */
FUNCTION u64 release_pages(u64 head, u64 larger, u64 order)
{
	struct block *block = find_block(head);
	if (!block || block->kind != PAGES || block->order < larger)
		return 0;
	if (block->order > order)
		release_piece(head, block, order);
	else
		forget_block(head, block);
	return 1;
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
	if (prints_events && is_wanted(current_pid_tgid()))
		print_event(state, PAGES, 1, page, 0, 4096ULL << (order & 31), 0, order);
	if (!is_unknown(page) && release_pages(page, 0, order))
		return 0;
	if (page_struct_bytes) {
#pragma unroll
		for (u32 larger = 1; larger <= MOST_ORDER; larger++) {
			if (larger <= order || !live_orders[larger])
				continue;
			u64 head = page & ~(((u64)page_struct_bytes << larger) - 1);
			if (head != page && maybe_large[large_slot(head)] && release_pages(head, larger, order))
				return 0;
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

/* Before 6.3 vmalloc has no tracepoint: where there are kprobes, what __get_vm_area_node returns. Before 5.15 the kernel's
 * unwinder sees no callers from there, so the site is found where the function begins. */
struct vm_struct {
	void *addr;
	unsigned long size;
	unsigned long flags;
} KERNEL_TYPE;

#define VM_NO_GUARD 0x40
#define GUARD_BYTES 4096

/* Sites of calls that have not returned, by thread. A thread has one: interrupts may not ask for such memory. */
struct {
	MAP_TYPE(MAP_HASH);
	MAP_ENTRIES(4096);
	MAP_KEY(u64);
	MAP_VALUE(u32);
} vmap_calls SEC(".maps");

SEC("kprobe") int vmap_call(struct registers *ctx)
{
	u64 ids = current_pid_tgid();
	struct state *state = state_of(P_VMALLOC_CALL);
	if (!state || !is_wanted(ids))
		return 0;
	u32 site = site_of(ctx, state, P_VMALLOC_CALL, VMALLOC, 0, 0);
	if (map_update(&vmap_calls, &ids, &site, ANY))
		lose(LOST_CALL, 1);
	return 0;
}
SEC("kretprobe") int vmap_return(struct registers *ctx)
{
	u64 ids = current_pid_tgid();
	/* Whose beginning was not seen is under "stack not kept". */
	u32 site = VMALLOC, *called = map_lookup(&vmap_calls, &ids);
	if (called) {
		site = *called;
		map_delete(&vmap_calls, &ids);
	}
	struct vm_struct *area = (void *)ctx->ax;
	u64 address = 0, bytes = 0, flags = 0;
	if (!area || read_kernel(&address, sizeof(address), &area->addr) || read_kernel(&bytes, sizeof(bytes), &area->size) ||
	    read_kernel(&flags, sizeof(flags), &area->flags))
		return 0;
	if (!(flags & VM_NO_GUARD))
		bytes -= GUARD_BYTES;
	return on_alloc_at(ctx, P_VMALLOC, VMALLOC, address, bytes, bytes, 0, 0, 0, site);
}
/* remove_vm_area(address) */
SEC("kprobe") int vmap_remove(struct registers *ctx)
{
	return on_free(P_VMALLOC_FREE, VMALLOC, ctx->di, 0);
}

/* One of the blocks of a bulk call; all have one site. */
FUNCTION u64 allocate_one(u64 place, u64 site, u64 requested, u64 usable)
{
	struct state *state = state_of(P_BULK);
	u64 address = 0;
	if (!state || read_kernel(&address, sizeof(address), (void *)place) || !address)
		return 0;
	u64 ids = current_pid_tgid();
	if (prints_events && is_wanted(ids))
		print_event(state, SLAB, 0, address, requested, usable, 0, 0);
	u64 weight = sampled(state, usable);
	if (!weight || site == NO_SITE) {
		if (!is_unknown(address))
			supersede_block(address);
		return 0;
	}
	struct block block = { .requested = requested, .usable = usable, .weight = weight, .kind = SLAB, .site = site };
	complete(state, &block, ids, about_now(state));
	keep_block(address, &block);
	return 0;
}

/* kmem_cache_alloc_bulk(cache, flags, size, blocks) has no tracepoint. Not every kernel lets a program take a pointer to
 * pointers out of its arguments, but each lets it copy all of them. */
SEC("fexit/kmem_cache_alloc_bulk") int bulk_alloc(u64 *ctx)
{
	u64 arguments[5] = {};
	struct state *state = state_of(P_BULK);
	if (!state || read_kernel(arguments, sizeof(arguments), ctx))
		return 0;
	struct kmem_cache *cache = (void *)arguments[0];
	u64 count = (u32)arguments[4], list = arguments[3];
	if (!count || (s32)count < 0)
		return 0;
	unsigned int requested = 0, usable = 0;
	read_kernel(&requested, sizeof(requested), &cache->object_size);
	read_kernel(&usable, sizeof(usable), &cache->size);
	state->events += count;
	state->bytes += count * usable;
	u32 site = NO_SITE;
	u64 rate = sample_bytes;
	if (!rate || state->rate != rate || state->remaining <= (s64)(count * usable)) {
		if (is_wanted(current_pid_tgid()))
			site = site_of(ctx, state, P_BULK, SLAB, cache, 0);
	}
	for (u32 i = 0; i < MOST_BULK; i++) {
		if (i >= count)
			return 0;
		allocate_one(list + i * 8, site, requested, usable);
	}
	lose(LOST_BULK, count - MOST_BULK);
	return 0;
}

/* One of the blocks of a bulk call. */
FUNCTION u64 release_one(u64 place)
{
	u64 address = 0;
	read_kernel(&address, sizeof(address), (void *)place);
	on_free(P_BULK_FREE, SLAB, address, 0);
	return 0;
}

/* kmem_cache_free_bulk(cache, size, blocks) has no tracepoint; kfree_bulk is the same without a cache. */
SEC("fentry/kmem_cache_free_bulk") int bulk_free(u64 *ctx)
{
	u64 arguments[3] = {};
	if (read_kernel(arguments, sizeof(arguments), ctx))
		return 0;
	u64 count = arguments[1], list = arguments[2];
	for (u32 i = 0; i < MOST_BULK; i++) {
		if (i >= count)
			return 0;
		release_one(list + i * 8);
	}
	lose(LOST_BULK, count - MOST_BULK);
	return 0;
}

/* kvfree_call_rcu(head, ptr): what it releases may go back to its cache without another event. */
SEC("fentry/kvfree_call_rcu") int rcu_free(u64 *ctx)
{
	u64 arguments[2] = {};
	if (read_kernel(arguments, sizeof(arguments), ctx))
		return 0;
	return on_free(P_RCU_FREE, KMALLOC, arguments[1], 0);
}
/* kvfree_call_rcu(head, offset) before 6.4: without a head the second argument is the block. */
SEC("fentry/kvfree_call_rcu") int rcu_free_offset(u64 *ctx)
{
	u64 arguments[2] = {};
	if (read_kernel(arguments, sizeof(arguments), ctx))
		return 0;
	return on_free(P_RCU_FREE, KMALLOC, arguments[0] ? arguments[0] - arguments[1] : arguments[1], 0);
}
