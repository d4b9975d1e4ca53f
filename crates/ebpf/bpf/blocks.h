/* SPDX-License-Identifier: MIT OR GPL-2.0
 *
 * The tables that both tracers share: which blocks are outstanding, where they were allocated, and sums by site.
 *
 * Three rules keep the sums right, whatever happens:
 *  - What a program writes without an atomic instruction belongs to one program on one processor (`states`): the kernel
 *    never runs a program inside of itself on the same processor, and counts the event as missed instead.
 *  - A block carries its site and its weight, and its release subtracts exactly what its allocation added. So
 *    allocated less freed is always the sum over the table, also while the sampling rate changes.
 *  - What finds no room is counted by cause (`lost`), and a stack that finds no room leaves its bytes at the site
 *    "stack not kept" of its kind: totals stay right when tables are full.
 *
 * src/layout.rs mirrors the structures.
 */
#ifndef LEAKSCOPE_BLOCKS_H
#define LEAKSCOPE_BLOCKS_H

#include "calls.h"

#define MOST_FRAMES 64
#define FILTER_BITS 12
#define WEIGHT_ONE 65536ULL

/* Kinds of memory; also the numbers of the sites "stack not kept". */
enum { KMALLOC, SLAB, PAGES, PERCPU, VMALLOC, USER, KINDS };

/* Indices of `lost`. */
enum {
	LOST_BLOCK_FULL,   /* the table of blocks was full: blocks */
	LOST_BLOCK_BYTES,  /* ... and their bytes */
	LOST_BLOCK_BUSY,   /* the table was locked by whom we interrupted: blocks */
	LOST_FREE_BUSY,    /* the same at a release: the block stays until its address is used again */
	LOST_SITE_FULL,    /* stacks that found no room */
	LOST_STACK,        /* stacks that the kernel did not give */
	LOST_STACK_CUT,    /* stacks deeper than MOST_FRAMES */
	LOST_MISSED_FREE,  /* an address was allocated again, so its release was not seen */
	LOST_BULK,         /* blocks of a bulk call beyond those that we look at */
	LOST_EVENT_RATE,   /* printed events above the rate */
	LOST_EVENT_FULL,   /* printed events that found the ring full */
	LOST_NAME,         /* names of processes that found no room */
	LOST_CALL,         /* returns whose call was not seen, or calls that found no room */
	LOST_STACK_WRONG,  /* stacks that were recalled otherwise than the kernel has them, where that is checked */
	LOST_KINDS
};

/* One outstanding block. */
struct block {
	u64 born_ns;
	u64 cgroup;
	u64 requested;
	u64 usable;
	u64 weight; /* allocations that this one stands for, times 65536 */
	u32 site;
	u32 tgid;
	u32 order; /* of pages: log2 of their number */
	u32 kind;
	u64 unused; /* one line of the cache */
};

/* What one site allocated on one processor, scaled to estimates by the weights. What it released is that less what
 * the table of blocks holds. */
struct sums {
	u64 blocks; /* times 65536 */
	u64 requested;
	u64 usable;
	u64 missed_frees; /* blocks taken off because their address was allocated again */
};

/* What one program on one processor keeps. */
struct state {
	s64 remaining; /* bytes until the next sample */
	u64 rate;      /* of which `remaining` was drawn */
	u64 events;    /* exact, sampled or not */
	u64 bytes;
	u64 unknown; /* releases of blocks that the table does not hold */
	u64 window_ns;
	u64 window_events;
	u64 last_tgid;
	u64 recalled; /* stacks that were had without the kernel's unwinder */
	u64 unwound;  /* and with it */
	u64 checked;  /* stacks of the former that were found to be right */
	s64 until_check;
	u64 tick;      /* of the kernel's clock, and the time in it: */
	u64 tick_ns;
	u64 number; /* for pointers to come out as numbers, which the verifier lets us calculate with */
	u64 ips[MOST_FRAMES];
};

struct site {
	u32 kind;
	u32 frames;
	u64 hash;
	u64 cache;
	char name[32];
	u64 ips[MOST_FRAMES];
};

struct event {
	u64 ns;
	u64 address;
	u64 requested;
	u64 usable;
	u64 call_site;
	u32 tgid;
	u32 tid;
	u8 kind;
	u8 freed;
	u16 order;
	u32 unused;
	char comm[16];
};

/* Set before loading; the verifier removes what they switch off. */
const volatile u32 self_tgid = 0;
const volatile u32 wanted_tgid = 0;
const volatile u32 wants_comm = 0;
const volatile u64 comm_low = 0, comm_high = 0;
const volatile u32 wants_cgroup = 0;
const volatile u64 wanted_cgroup = 0;
const volatile u32 cgroup_level = 0;
const volatile u32 wants_module = 0;
const volatile u64 module_low = 0, module_high = 0;
const volatile u32 prints_events = 0;
const volatile u64 events_per_second = 0; /* of one processor */

/* Mean bytes between samples; 0: every allocation. In a map of its own, because it is written while programs run. */
u64 sample_bytes SEC(".data.control") = 0;

u32 maybe[1 << FILTER_BITS] = {}; /* blocks in the table by hash of their address: most releases need no more */
/* Blocks of more than one page: how many by order, and by hash of their address. */
#define LARGE_BITS 14
u32 live_orders[16] = {};
u32 maybe_large[1 << LARGE_BITS] = {};

/* The site that a hash had last. Whether it still has it is asked of the site. */
#define RECENT_BITS 12
u32 recent_sites[1 << RECENT_BITS] = {};

struct {
	MAP_TYPE(MAP_HASH);
	MAP_ENTRIES(1024);
	MAP_KEY(u64);
	MAP_VALUE(struct block);
} blocks SEC(".maps");

struct {
	MAP_TYPE(MAP_HASH);
	MAP_ENTRIES(1024);
	MAP_KEY(u64);
	MAP_VALUE(u32);
} site_numbers SEC(".maps");

struct {
	MAP_TYPE(MAP_ARRAY);
	MAP_ENTRIES(1024);
	MAP_KEY(u32);
	MAP_VALUE(struct site);
} sites SEC(".maps");

struct {
	MAP_TYPE(MAP_QUEUE);
	MAP_ENTRIES(1024);
	MAP_KEY_SIZE(0);
	MAP_VALUE_SIZE(4);
} free_sites SEC(".maps");

struct {
	MAP_TYPE(MAP_PERCPU_ARRAY);
	MAP_ENTRIES(1024);
	MAP_KEY(u32);
	MAP_VALUE(struct sums);
} site_sums SEC(".maps");

struct {
	MAP_TYPE(MAP_PERCPU_ARRAY);
	MAP_ENTRIES(32);
	MAP_KEY(u32);
	MAP_VALUE(struct state);
} states SEC(".maps");

struct {
	MAP_TYPE(MAP_PERCPU_ARRAY);
	MAP_ENTRIES(LOST_KINDS);
	MAP_KEY(u32);
	MAP_VALUE(u64);
} lost SEC(".maps");

struct name {
	char comm[16];
};

struct {
	MAP_TYPE(MAP_HASH);
	MAP_ENTRIES(4096);
	MAP_KEY(u32);
	MAP_VALUE(struct name);
} names SEC(".maps");

struct {
	MAP_TYPE(MAP_RINGBUF);
	MAP_ENTRIES(4096);
} events SEC(".maps");

INLINE void lose(u32 what, u64 count)
{
	u64 *slot = map_lookup(&lost, &what);
	if (slot)
		atomic_add(slot, count);
}

INLINE u32 filter_slot(u64 address)
{
	return (u32)((address * 0x9E3779B97F4A7C15ULL) >> (64 - FILTER_BITS));
}

/* Whether the running task is one that the user asked for. */
INLINE int is_wanted(u64 ids)
{
	if (self_tgid || wanted_tgid) {
		u32 tgid = ids >> 32;
		if (tgid == self_tgid || (wanted_tgid && tgid != wanted_tgid))
			return 0;
	}
	if (wants_comm) {
		u64 comm[2] = {};
		current_comm(comm, sizeof(comm));
		/* What follows the terminating zero is zero here, and in what we were given. */
		if (comm[0] != comm_low || comm[1] != comm_high)
			return 0;
	}
	if (wants_cgroup && current_ancestor_cgroup_id(cgroup_level) != wanted_cgroup)
		return 0;
	return 1;
}

/* -ln(u) of a uniform u in (0, 1), times 65536. */
INLINE u64 exponential(void)
{
	u64 drawn = ((u64)random_u32() << 1) | 1; /* of 2^33 */
	u32 zeros = 0;
	/* Normalised to [2^31, 2^32): log2 of the drawn number is 32 - zeros and a fraction. */
	u64 mantissa = drawn;
	if (!(mantissa >> 17)) { mantissa <<= 16; zeros += 16; }
	if (!(mantissa >> 25)) { mantissa <<= 8; zeros += 8; }
	if (!(mantissa >> 29)) { mantissa <<= 4; zeros += 4; }
	if (!(mantissa >> 31)) { mantissa <<= 2; zeros += 2; }
	if (!(mantissa >> 32)) { mantissa <<= 1; zeros += 1; }
	mantissa >>= 1;
	/* The fraction bit by bit: squaring doubles a logarithm. Without branches, each of which would double what the
	 * verifier has to look at. */
	u64 fraction = 0;
#pragma unroll
	for (int bit = 15; bit >= 0; bit--) {
		mantissa = (mantissa * mantissa) >> 31;
		u64 carry = mantissa >> 32;
		keep(carry);
		mantissa >>= carry & 1;
		fraction = (fraction << 1) | carry;
	}
	u64 log2 = ((u64)(32 - zeros) << 16) | fraction;
	/* -ln(drawn / 2^33) = ln 2 * (33 - log2(drawn)); 45426 / 65536 is ln 2. */
	return (((33ULL << 16) - log2) * 45426) >> 16;
}

/* Bytes to the next sample. */
FUNCTION u64 draw(u64 rate)
{
	return ((exponential() * (rate >> 4)) >> 12) + 1;
}

/* How many allocations of this size one sampled one stands for, times 65536: 1 / (1 - exp(-bytes / rate)).
 *
 * With y = bytes / rate / 16 below 1, w(y) = 1/y + 1/2 + y/12 - y^3/720, and doubling y four times is
 * w(2y) = w(y)^2 / (2 w(y) - 1). */
FUNCTION u64 weight_of(u64 bytes, u64 rate)
{
	if (!rate || bytes >= rate * 12)
		return WEIGHT_ONE;
	if (!bytes)
		bytes = 1;
	if (bytes < rate / 4)
		return (rate << 16) / bytes + WEIGHT_ONE / 2 + ((bytes << 16) / rate) / 12;
	/* 24 bits behind the point while it is squared. */
	u64 y = (bytes << 20) / rate;
	u64 cubed = (((y * y) >> 24) * y) >> 24;
	u64 w = ((rate << 28) / bytes) + (1 << 23) + y / 12 - cubed / 720;
#pragma unroll
	for (int i = 0; i < 4; i++)
		w = ((w * (w >> 8)) / ((w << 1) - (1 << 24))) << 8;
	return w >> 8;
}

INLINE u64 scaled(u64 value, u64 weight)
{
	return (value * (weight >> 8)) >> 8;
}

INLINE u32 large_slot(u64 address)
{
	return (u32)((address * 0x9E3779B97F4A7C15ULL) >> (64 - LARGE_BITS));
}

/* Counts a block of several pages in, or out. */
INLINE void count_large(u64 address, u32 kind, u32 order, u32 difference)
{
	if (kind != PAGES || !order)
		return;
	atomic_add(&live_orders[order & 15], difference);
	atomic_add(&maybe_large[large_slot(address)], difference);
}

/* Forgets a block that the table holds. `entry` may be reused as soon as it is deleted, so it is copied first. */
INLINE long forget(u64 address, struct block *entry)
{
	u32 kind = entry->kind, order = entry->order;
	long failed = map_delete(&blocks, &address);
	if (failed) {
		if (failed != -E_NOENT)
			lose(LOST_FREE_BUSY, 1);
		return failed;
	}
	atomic_add(&maybe[filter_slot(address)], (u32)-1);
	count_large(address, kind, order, (u32)-1);
	return 0;
}

/* Counts a block whose release was not seen. */
INLINE void count_missed(u32 site)
{
	lose(LOST_MISSED_FREE, 1);
	struct sums *sums = map_lookup(&site_sums, &site);
	if (sums)
		atomic_add(&sums->missed_frees, 1);
}

/* Forgets a block whose address is allocated again. */
INLINE void supersede(u64 address, struct block *entry)
{
	u32 site = entry->site;
	if (!forget(address, entry))
		count_missed(site);
}

INLINE void remember_name(struct state *state, u32 tgid)
{
	if (state->last_tgid == tgid)
		return;
	state->last_tgid = tgid;
	if (map_lookup(&names, &tgid))
		return;
	struct name name = {};
	current_comm(&name, sizeof(name));
	if (map_update(&names, &tgid, &name, ANY))
		lose(LOST_NAME, 1);
}

/* The number of the site of `frames` addresses in `state->ips`, which `hash` stands for. */
INLINE u32 site_number(struct state *state, u64 hash, u32 frames, u32 kind, u64 cache, const char *name)
{
	u32 *recent = &recent_sites[hash >> (64 - RECENT_BITS)];
	u32 number = *recent;
	struct site *site = map_lookup(&sites, &number);
	if (site && site->hash == hash)
		return number;
	u32 *known = map_lookup(&site_numbers, &hash);
	if (known) {
		*recent = *known;
		return *known;
	}
	number = 0;
	if (map_pop(&free_sites, &number)) {
		lose(LOST_SITE_FULL, 1);
		return kind;
	}
	site = map_lookup(&sites, &number);
	if (!site)
		return kind;
	site->kind = kind;
	site->frames = frames;
	site->cache = cache;
	if (name)
		read_kernel_text(site->name, sizeof(site->name), name);
	read_kernel(site->ips, sizeof(site->ips), state->ips);
	if (map_update(&site_numbers, &hash, &number, NOEXIST)) {
		/* Another processor was first, or there is no room. */
		map_push(&free_sites, &number, ANY);
		known = map_lookup(&site_numbers, &hash);
		if (known)
			return *known;
		lose(LOST_SITE_FULL, 1);
		return kind;
	}
	/* Last: until now nobody finds it by its hash. */
	*(volatile u64 *)&site->hash = hash;
	return number;
}

/* The time, to a tick of the kernel's clock. */
INLINE u64 about_now(struct state *state)
{
	u64 tick = ticks();
	if (state->tick != tick) {
		state->tick = tick;
		state->tick_ns = now_ns();
	}
	return state->tick_ns;
}

/* Says of a block when it was allocated, and by whom. */
INLINE void complete(struct state *state, struct block *block, u64 ids, u64 ns)
{
	block->tgid = ids >> 32;
	block->born_ns = ns;
	block->cgroup = current_cgroup_id();
	remember_name(state, block->tgid);
}

/* Adds a block to what its site allocated. */
INLINE void count_kept(struct block *block)
{
	u32 site = block->site;
	struct sums *sums = map_lookup(&site_sums, &site);
	if (!sums)
		return;
	if (site >= KINDS) {
		/* Of one stack, and so of one program, which does not interrupt itself. */
		sums->blocks += block->weight;
		sums->requested += scaled(block->requested, block->weight);
		sums->usable += scaled(block->usable, block->weight);
		return;
	}
	atomic_add(&sums->blocks, block->weight);
	atomic_add(&sums->requested, scaled(block->requested, block->weight));
	atomic_add(&sums->usable, scaled(block->usable, block->weight));
}

/* Enters a block that is complete. */
INLINE void enter(u64 address, struct block *block)
{
	/* First the filter, then the table: whoever finds the filter empty may rely on it. */
	u32 slot = filter_slot(address);
	atomic_add(&maybe[slot], 1);
	long failed = map_update(&blocks, &address, block, NOEXIST);
	if (failed == -E_EXIST) {
		struct block *stale = map_lookup(&blocks, &address);
		if (stale)
			supersede(address, stale);
		failed = map_update(&blocks, &address, block, NOEXIST);
	}
	if (failed) {
		atomic_add(&maybe[slot], (u32)-1);
		lose(failed == -E_2BIG ? LOST_BLOCK_FULL : LOST_BLOCK_BUSY, 1);
		lose(LOST_BLOCK_BYTES, scaled(block->usable, block->weight));
		return;
	}
	count_large(address, block->kind, block->order, 1);
	count_kept(block);
}

/* Whether this allocation is tracked, and for how many it stands; 0 when it is not. */
INLINE u64 sampled(struct state *state, u64 bytes)
{
	u64 rate = sample_bytes;
	if (!rate)
		return WEIGHT_ONE;
	if (state->rate != rate) {
		/* The time to the next sample has no memory: it may be drawn anew whenever the rate changes. */
		state->rate = rate;
		state->remaining = (s64)draw(rate);
	}
	state->remaining -= bytes;
	if (state->remaining > 0)
		return 0;
	state->remaining = (s64)draw(rate);
	return weight_of(bytes, rate);
}

INLINE void print_event(struct state *state, u32 kind, u32 freed, u64 address, u64 requested, u64 usable, u64 call_site,
			u32 order)
{
	u64 ns = now_ns();
	if (ns - state->window_ns >= 1000000000ULL) {
		state->window_ns = ns;
		state->window_events = 0;
	}
	if (state->window_events >= events_per_second) {
		lose(LOST_EVENT_RATE, 1);
		return;
	}
	state->window_events++;
	struct event *event = ring_reserve(&events, sizeof(*event), 0);
	if (!event) {
		lose(LOST_EVENT_FULL, 1);
		return;
	}
	u64 ids = current_pid_tgid();
	event->ns = ns;
	event->address = address;
	event->requested = requested;
	event->usable = usable;
	event->call_site = call_site;
	event->tgid = ids >> 32;
	event->tid = (u32)ids;
	event->kind = kind;
	event->freed = freed;
	event->order = order;
	event->unused = 0;
	current_comm(event->comm, sizeof(event->comm));
	ring_submit(event, 0);
}

#endif
