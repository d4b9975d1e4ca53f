/* SPDX-License-Identifier: MIT OR GPL-2.0
 *
 * Outstanding blocks by address, for exact tracing: a table without locks and without calls into the kernel.
 *
 * The kernel's own hash map takes a lock, a list of free elements and some ten calls for each change, which is more than
 * all that is left of an event. Here a block lies in one of seven slots that its address names. Their keys are in one
 * line of the cache, and behind them a byte for each that says whether somebody has it:
 *
 *   buckets[n]  [ key 0 | key 1 | ... | key 6 | claims: a byte each ]        slots[8n + way] = struct block
 *
 * A slot is claimed by adding one to its byte and looking whether it is one then. Of two who add at once at most one sees
 * a one; who does not, takes its one back and looks further. (An exchange would do, but is of 5.12.) The key is written
 * when the block is complete, so that whoever reads along from outside sees whole blocks. A release clears the key, and
 * then the claim: events of one address come in order, so nobody else touches its slot.
 *
 * This order of two writes is that of x86-64. Elsewhere, and where seven slots are taken, the map `blocks` holds a block.
 * src/table.rs reads along.
 */
#ifndef LEAKSCOPE_TABLE_H
#define LEAKSCOPE_TABLE_H

#include "blocks.h"

#define WAYS 7
#define CLAIMS 7 /* index of the claims */
#define HELD (1ULL << 32)

struct bucket {
	u64 words[8];
};

struct {
	MAP_TYPE(MAP_ARRAY);
	MAP_ENTRIES(1);
	MAP_KEY(u32);
	MAP_VALUE(struct bucket);
	MAP_FLAGS(MMAPABLE);
} buckets SEC(".maps");

struct {
	MAP_TYPE(MAP_ARRAY);
	MAP_ENTRIES(8);
	MAP_KEY(u32);
	MAP_VALUE(struct block);
	MAP_FLAGS(MMAPABLE);
} slots SEC(".maps");

/* How many buckets there are, less one. */
const volatile u32 last_bucket = 0;
/* 0: `blocks` holds everything. */
const volatile u32 has_table = 0;
/* Whether `maybe` counts the table's blocks too. That pays where most blocks are not tracked. */
const volatile u32 counts_table = 0;

INLINE u32 bucket_of(u64 key)
{
	return (u32)((key * 0x9E3779B97F4A7C15ULL) >> 32) & last_bucket;
}

INLINE u64 claim_of(u32 way)
{
	return 1ULL << (way * 8);
}

/* The slot of a key, and one more; 0 when the table does not hold it. */
FUNCTION u64 find_slot(u64 key)
{
	u32 number = bucket_of(key);
	struct bucket *bucket = map_lookup(&buckets, &number);
	if (!bucket)
		return 0;
#pragma unroll
	for (u32 way = 0; way < WAYS; way++)
		if (bucket->words[way] == key)
			return ((u64)number << 3) + way + 1;
	return 0;
}

/* Takes a key out; gives the slot where it was, and one more. */
FUNCTION u64 drop_slot(u64 key)
{
	u32 number = bucket_of(key);
	struct bucket *bucket = map_lookup(&buckets, &number);
	if (!bucket)
		return 0;
#pragma unroll
	for (u32 way = 0; way < WAYS; way++) {
		if (bucket->words[way] != key)
			continue;
		*(volatile u64 *)&bucket->words[way] = 0;
		atomic_add(&bucket->words[CLAIMS], -claim_of(way));
		return ((u64)number << 3) + way + 1;
	}
	return 0;
}

/* A slot for a key, and one more: the one that holds it already (with HELD), or one that is free, whose key must be
 * written. 0: all are taken. */
FUNCTION u64 claim_slot(u64 key)
{
	u32 number = bucket_of(key);
	struct bucket *bucket = map_lookup(&buckets, &number);
	if (!bucket)
		return 0;
	volatile u64 *claims = &bucket->words[CLAIMS];
	u64 before = *claims;
#pragma unroll
	for (u32 way = 0; way < WAYS; way++)
		if (bucket->words[way] == key)
			return HELD | (((u64)number << 3) + way + 1);
#pragma unroll
	for (u32 way = 0; way < WAYS; way++) {
		if (before & (255 * claim_of(way)))
			continue;
		atomic_add(claims, claim_of(way));
		if ((*claims & (255 * claim_of(way))) == claim_of(way))
			return ((u64)number << 3) + way + 1;
		atomic_add(claims, -claim_of(way));
	}
	return 0;
}

/* Shows the key of a slot that was claimed. */
INLINE void show_slot(u32 slot, u64 key)
{
	u32 number = slot >> 3;
	struct bucket *bucket = map_lookup(&buckets, &number);
	if (bucket)
		*(volatile u64 *)&bucket->words[slot & 7] = key;
}

/* Whether nothing of this address can be outstanding; 0 says nothing. */
INLINE int is_unknown(u64 key)
{
	return (!has_table || counts_table) && !maybe[filter_slot(key)];
}

/* Counts what the table does not hold any longer. */
INLINE void count_dropped(u64 key, struct block *block)
{
	if (counts_table)
		atomic_add(&maybe[filter_slot(key)], (u32)-1);
	if (block)
		count_large(key, block->kind, block->order, (u32)-1);
}

/* The block of an address, in the table or in the map; 0 when there is none. */
INLINE struct block *find_block(u64 key)
{
	if (has_table) {
		u32 slot = find_slot(key);
		if (slot--)
			return map_lookup(&slots, &slot);
	}
	return maybe[filter_slot(key)] ? map_lookup(&blocks, &key) : 0;
}

/* Forgets a block whose order does not matter; gives whether it was known. */
FUNCTION u64 forget_object(u64 key)
{
	if (has_table && drop_slot(key)) {
		count_dropped(key, 0);
		return 1;
	}
	u32 filter = filter_slot(key);
	if (!maybe[filter])
		return 0;
	long failed = map_delete(&blocks, &key);
	if (!failed)
		atomic_add(&maybe[filter], (u32)-1);
	else if (failed != -E_NOENT)
		lose(LOST_FREE_BUSY, 1);
	return !failed;
}

/* Forgets a block that `find_block` gave. */
INLINE void forget_block(u64 key, struct block *block)
{
	/* As soon as it is dropped its slot may be another's. */
	struct block gone = { .kind = block->kind, .order = block->order };
	if (has_table && drop_slot(key))
		count_dropped(key, &gone);
	else
		forget(key, block);
}

/* Forgets a block whose address is allocated again, and not tracked this time. */
FUNCTION u64 supersede_block(u64 key)
{
	struct block *block = find_block(key);
	if (!block)
		return 0;
	u32 site = block->site;
	forget_block(key, block);
	count_missed(site);
	return 0;
}

/* Enters a block that is complete. */
INLINE void keep_block(u64 key, struct block *block)
{
	u64 claimed = has_table ? claim_slot(key) : 0;
	if (!claimed) {
		enter(key, block);
		return;
	}
	u32 filter = filter_slot(key), slot = (u32)claimed - 1;
	struct block *place = map_lookup(&slots, &slot);
	if (!place)
		return;
	if (maybe[filter]) {
		/* The map may hold what was there before. */
		struct block *stale = map_lookup(&blocks, &key);
		if (stale)
			supersede(key, stale);
	}
	if (counts_table)
		atomic_add(&maybe[filter], 1);
	if (claimed & HELD) {
		count_missed(place->site);
		count_dropped(key, place);
	}
	*place = *block;
	show_slot(slot, key);
	count_large(key, block->kind, block->order, 1);
	count_kept(block);
}

#endif
