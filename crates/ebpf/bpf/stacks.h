/* SPDX-License-Identifier: MIT OR GPL-2.0
 *
 * Stacks of the kernel, for a tenth of what the kernel's unwinder takes.
 *
 * Unwinding without frame pointers looks up, for each return address, how far above it the next one lies. For one
 * return address that distance is always the same. So the kernel's unwinder is asked once for each of them, the
 * distances are learned from what it says, and from then on a stack is a walk over a copy of the stack's memory.
 *
 *   ctx ─> [ arguments | ... | return address | ... | return address | ... | outermost return address | registers ]
 *          └── known by program ──┘└── known by address ──┘                └── known to be the end, at this place
 *
 * What makes it exact: a walk that meets an address without a distance, that leaves the copy, or that ends anywhere but
 * where stacks end, is given up, and the kernel is asked, whose answer corrects the table. A wrong distance would have to
 * lead from one known return address to another, over and over, up to the right end; and it must have been seen twice. One
 * stack in some hundreds is compared with the kernel's nonetheless, and what differs is told.
 *
 * The kernel moves the stack of each system call by a random distance below the function that all of them go through
 * (CONFIG_RANDOMIZE_KSTACK_OFFSET). A stack ends in that function; what lies behind it is always the same.
 */
#ifndef LEAKSCOPE_STACKS_H
#define LEAKSCOPE_STACKS_H

#include "blocks.h"

#define STACK_WORDS 256
/* Words that are copied at once: most stacks end in the second piece. */
#define PIECE_WORDS 64
/* Of x86-64 and arm64; where stacks are larger they are a multiple, and still end where they end. */
#define THREAD_WORDS 2048
#define THREAD_BYTES (THREAD_WORDS * 8)
/* Frames in front that are ours: the program and who calls it. They lie below `ctx`. */
#define OWN_FRAMES 2
/* The function that a kprobe stands at, whose callers are wanted. */
#define PROBED_FRAMES 1
#define DISTANCE_BITS 16

/* A distance: the low 48 bits of the address that it is for, and in the low 16 bits words to the next one, or an end. */
#define AN_END 0x8000ULL
#define CONFIRMED 0x4000ULL /* the distance was seen twice */

enum { SURE = 1, IN_DOUBT = 2 };

/* What `find_addresses` and `learn` are at. */
struct search {
	u64 found, last, from, before, wanted;
};

struct stack {
	u64 words[STACK_WORDS];
	u64 other[MOST_FRAMES];
	u64 known; /* words that were copied */
	u64 seed;  /* what a stack's hash begins with */
	u64 hash;
	u64 slots[MOST_FRAMES];  /* where an address was found */
	u64 doubts[MOST_FRAMES]; /* whether the same word came again behind it, or its place was known */
	struct search search;
};

/* Of so many stacks that are recalled one is compared with what the kernel says; those that differ are counted. */
const volatile u32 check_every = 256;
/* The function that all system calls go through. */
const volatile u64 outermost_low = 0, outermost_high = 0;

u64 distances[1 << DISTANCE_BITS] = {};

struct {
	MAP_TYPE(MAP_PERCPU_ARRAY);
	MAP_ENTRIES(16);
	MAP_KEY(u32);
	MAP_VALUE(struct stack);
} stacks SEC(".maps");

INLINE u64 *distance_of(u64 address)
{
	return &distances[(address * 0x9E3779B97F4A7C15ULL) >> (64 - DISTANCE_BITS)];
}

INLINE int is_of(u64 entry, u64 address)
{
	return entry && ((entry ^ (address << 16)) >> 16) == 0;
}

/* Stands for the return address below the first: the program itself. */
INLINE u64 first_of(u32 program)
{
	return program + 1;
}

INLINE int is_outermost(u64 address)
{
	return address >= outermost_low && address < outermost_high;
}

INLINE u64 mixed(u64 hash, u64 address)
{
	hash = (hash ^ address) * 0xFF51AFD7ED558CCDULL;
	return hash ^ (hash >> 32);
}

/* Copies the next piece of the stack that begins at `start`; gives how many words there are then. */
FUNCTION u64 copy_piece(u32 program, u64 start)
{
	struct stack *stack = map_lookup(&stacks, &program);
	if (!stack)
		return 0;
	u64 known = stack->known, piece = known / PIECE_WORDS, there = THREAD_WORDS - ((start >> 3) & (THREAD_WORDS - 1));
	if (known >= there || piece >= STACK_WORDS / PIECE_WORDS)
		return known;
	u64 words = there - known;
	keep(words);
	if (words > PIECE_WORDS)
		words = PIECE_WORDS;
	piece &= STACK_WORDS / PIECE_WORDS - 1;
	if (read_kernel(stack->words + piece * PIECE_WORDS, words * 8, (void *)(start + known * 8)))
		return known;
	stack->known = known + words;
	return known + words;
}

/* Copies pieces until this word is among them, as far as there are any; gives how many words there are. */
FUNCTION u64 copy_up_to(u32 program, u64 start, u64 word)
{
	u64 known = 0;
	for (u32 i = 0; i < STACK_WORDS / PIECE_WORDS; i++) {
		known = copy_piece(program, start);
		if (word < known)
			break;
	}
	return known;
}

/* The frames of the stack that begins at `start`, in `state->ips`; 0 when the kernel must be asked. */
FUNCTION u64 recall(u32 program, u64 start, u64 call_site)
{
	struct state *state = map_lookup(&states, &program);
	struct stack *stack = map_lookup(&stacks, &program);
	if (!state || !stack)
		return 0;
	stack->known = 0;
	stack->search.found = 0;
	u64 known = copy_piece(program, start);
	u64 hash = stack->hash, address = first_of(program), first = start >> 3;
	/* Where we are goes through the map, as in `find_addresses`. */
	volatile u64 *place = &stack->search.last;
	*place = 0;
	for (u64 i = 0; i < MOST_FRAMES; i++) {
		u64 at = *place, entry = *distance_of(address);
		if (is_outermost(address)) {
			stack->search.found = i;
			break;
		}
		if (!is_of(entry, address))
			break;
		if (entry & AN_END) {
			if (((first + at) & (THREAD_WORDS - 1)) == (entry & (THREAD_WORDS - 1))) {
				stack->search.found = i;
				break;
			}
			/* An exception: its entry is the end when it came from a program, and has a distance when it came from
			 * the kernel. */
			entry = *distance_of(address ^ 1);
			if (!is_of(entry, address ^ 1))
				break;
		}
		/* The allocator's caller is known otherwise. */
		if (!(entry & CONFIRMED) && !(i == 1 && call_site))
			break;
		at += entry & (THREAD_WORDS - 1);
		if (at + 1 >= known) {
			known = copy_up_to(program, start, at + 1);
			if (at >= known)
				break;
		}
		address = stack->words[at & (STACK_WORDS - 1)];
		/* A function that aligns its stack to 16 bytes has two distances: the allocators do, for cmpxchg16b. */
		if (i == 1 && call_site && address != call_site) {
			if (stack->words[(at + 1) & (STACK_WORDS - 1)] == call_site)
				at++;
			else if (stack->words[(at - 1) & (STACK_WORDS - 1)] == call_site)
				at--;
			address = stack->words[at & (STACK_WORDS - 1)];
		}
		*place = at;
		state->ips[i] = address;
		hash = mixed(hash, address);
		if (i == MOST_FRAMES - 1)
			stack->search.found = MOST_FRAMES;
	}
	u64 frames = *(volatile u64 *)&stack->search.found;
	/* The tracepoint tells whom the allocator returns to. */
	if (!frames || (call_site && state->ips[1] != call_site && state->ips[2] != call_site))
		return 0;
	stack->hash = hash;
	return frames;
}

/* Looks at a word of the copy that is the address that comes next, or one of the last two; gives whether all are found.
 *
 * A stack is full of words that earlier calls left behind, return addresses among them. A distance that is known already
 * tells which of several equal words is the one. Otherwise a word that comes again leaves doubt, and nothing is learned
 * from it. Of the caller that the tracepoint tells, the allocator keeps copies, all below the return address itself: the
 * last one counts. */
FUNCTION u64 look_at(u32 program, u64 i, u64 frames, u64 call_site)
{
	struct state *state = map_lookup(&states, &program);
	struct stack *stack = map_lookup(&stacks, &program);
	if (!state || !stack)
		return 1;
	struct search *search = &stack->search;
	u64 word = stack->words[i & (STACK_WORDS - 1)], found = search->found, from = search->from, last = search->last;
	if (word != search->wanted) {
		u64 again = (word == from ? found - 1 : found - 2) & (MOST_FRAMES - 1);
		if (stack->doubts[again] == SURE)
			return 0;
		if (word == from && word == call_site) {
			stack->slots[again] = i;
			search->last = i;
		} else {
			stack->doubts[again] = IN_DOUBT;
		}
		return 0;
	}
	u64 known = *distance_of(from), is_sure = 0;
	if (is_of(known, from) && (known & AN_END)) {
		from ^= 1;
		known = *distance_of(from);
	}
	if (is_of(known, from)) {
		u64 there = last + (known & (THREAD_WORDS - 1));
		if (i != there && there < stack->known && stack->words[there & (STACK_WORDS - 1)] == word)
			return 0;
		is_sure = i == there;
	}
	stack->slots[found & (MOST_FRAMES - 1)] = i;
	stack->doubts[found & (MOST_FRAMES - 1)] = is_sure ? SURE : 0;
	found++;
	search->found = found;
	search->last = i;
	search->before = search->from;
	search->from = word;
	search->wanted = state->ips[found & (MOST_FRAMES - 1)];
	return found >= frames || is_outermost(word);
}

/* Finds the return addresses of the kernel's answer in the copy, from the inside out; gives how many were found. What
 * changes from word to word is kept in the map: the verifier knows nothing of a number from there, and so has no more
 * cases to look at than there are words. */
INLINE u64 find_addresses(struct state *state, struct stack *stack, u64 frames, u32 program, u64 call_site)
{
	volatile struct search *search = &stack->search;
	search->found = 0;
	search->last = 0;
	search->from = first_of(program);
	search->before = 0;
	search->wanted = state->ips[0];
	for (u64 i = 0; i < STACK_WORDS; i++) {
		u64 word = stack->words[i];
		if ((word == search->wanted || word == search->from || word == search->before) &&
		    (i >= stack->known || look_at(program, i, frames, call_site)))
			break;
	}
	return search->found;
}

/* Learns the distance to one address. */
FUNCTION u64 learn_one(u32 program, u64 k, u64 frames, u64 start)
{
	struct state *state = map_lookup(&states, &program);
	struct stack *stack = map_lookup(&stacks, &program);
	if (!state || !stack)
		return 0;
	k &= MOST_FRAMES - 1;
	struct search *search = &stack->search;
	u64 slot = stack->slots[k], doubt = stack->doubts[k] == IN_DOUBT, from = search->from, address = state->ips[k];
	u64 distance = slot - search->last, old = *distance_of(from);
	if (!doubt && !search->before) {
		if (is_of(old, from) && (old & AN_END))
			from ^= 1;
		*distance_of(from) = (from << 16) | distance | (stack->doubts[k] == SURE ? CONFIRMED : 0);
		if (k + 1 == frames)
			*distance_of(address) = (address << 16) | AN_END | (((start >> 3) + slot) & (THREAD_WORDS - 1));
	}
	search->from = address;
	search->last = slot;
	search->before = doubt;
	return 0;
}

/* Learns from what the kernel said of the stack that `recall` copied. */
FUNCTION u64 learn(u32 program, u64 frames, u64 start, u64 call_site)
{
	struct state *state = map_lookup(&states, &program);
	struct stack *stack = map_lookup(&stacks, &program);
	if (!state || !stack)
		return 0;
	copy_up_to(program, start, STACK_WORDS);
	u64 found = find_addresses(state, stack, frames, program, call_site);
	stack->search.from = first_of(program);
	stack->search.last = 0;
	stack->search.before = 0; /* whether the last one was in doubt */
	for (u64 k = 0; k < MOST_FRAMES; k++) {
		if (k >= found)
			break;
		learn_one(program, k, frames, start);
	}
	return found;
}

/* Whether the first addresses of `state->ips` are those that the kernel says, in `stack->other`. */
FUNCTION u64 are_equal(u32 program, u64 frames)
{
	struct state *state = map_lookup(&states, &program);
	struct stack *stack = map_lookup(&stacks, &program);
	if (!state || !stack)
		return 0;
	u64 differing = 0;
	for (u32 i = 0; i < MOST_FRAMES; i++) {
		if (i >= frames)
			break;
		differing |= state->ips[i] ^ stack->other[i];
	}
	return !differing;
}

/* Whether what was recalled is what the kernel says; the outermost function may be left out. */
INLINE int is_right(void *ctx, struct stack *stack, u64 frames, u32 program)
{
	long bytes = get_stack(ctx, stack->other, sizeof(stack->other), OWN_FRAMES);
	u64 others = (u64)bytes >> 3;
	if (bytes <= 0 || (others != frames && others != frames + 1))
		return 0;
	return are_equal(program, frames) != 0;
}

/* Mixes the addresses of `state->ips` into `stack->hash`. */
FUNCTION u64 mix_stack(u32 program, u64 frames)
{
	struct state *state = map_lookup(&states, &program);
	struct stack *stack = map_lookup(&stacks, &program);
	if (!state || !stack)
		return 0;
	u64 hash = stack->hash;
	for (u32 i = 0; i < MOST_FRAMES; i++) {
		if (i >= frames)
			break;
		hash = mixed(hash, state->ips[i]);
	}
	stack->hash = hash;
	return hash;
}

INLINE u64 recalled(u64 frames)
{
	if (frames == MOST_FRAMES)
		lose(LOST_STACK_CUT, 1);
	return frames;
}

/* The frames of the running stack in `state->ips`, and in `stack->hash` what they are mixed to. `start` is where `ctx`
 * lies on the stack; 0 when it does not lie there.
 *
 * Loops are in functions: the verifier looks at each of them once, and not again for each way that leads there. */
INLINE u64 walk(void *ctx, struct state *state, struct stack *stack, u64 start, u32 program, u64 call_site)
{
	u64 frames = 0;
	if (start)
		frames = recall(program, start, call_site);
	if (frames) {
		state->recalled++;
		if (--state->until_check > 0)
			return recalled(frames);
		if (is_right(ctx, stack, frames, program)) {
			state->until_check = check_every;
			state->checked++;
			return recalled(frames);
		}
		lose(LOST_STACK_WRONG, 1);
		stack->hash = stack->seed;
	}
	state->unwound++;
	long bytes = get_stack(ctx, state->ips, sizeof(state->ips), start ? OWN_FRAMES : PROBED_FRAMES);
	frames = (u64)bytes >> 3;
	if (bytes <= 0 || frames > MOST_FRAMES) {
		lose(LOST_STACK, 1);
		state->ips[0] = call_site;
		frames = call_site != 0;
	} else if (frames == MOST_FRAMES) {
		lose(LOST_STACK_CUT, 1);
	} else if (start && stack->known) {
		learn(program, frames, start, call_site);
		/* The same stack must be the same whoever walked it. */
		if (frames >= 2 && is_outermost(state->ips[(frames - 2) & (MOST_FRAMES - 1)]))
			frames--;
	}
	mix_stack(program, frames);
	return frames;
}

#endif
