//! Memory pools.

use leakscope_model::ErrorKind;
use leakscope_translate::Engine;

use super::Words;
use crate::engine::{Memcheck, shadow};
use crate::pools::{Custom, Pool};

const AUTO_FREE: u64 = 1;
const METAPOOL: u64 = 2;

/// The redzones of a block, whatever the target has said of what surrounds it.
pub(super) fn forbid_around(start: u64, bytes: u64, redzone_bytes: u64) {
    if redzone_bytes <= start && redzone_bytes < 1 << 20 {
        shadow().forbid(start - redzone_bytes, redzone_bytes);
        shadow().forbid(start + bytes, redzone_bytes);
    }
}

impl Memcheck {
    pub(super) fn mempool(&mut self, engine: &mut Engine, words: &Words) -> u64 {
        let [request, pool, second, third, fourth, _] = *words;
        match request {
            // CREATE_MEMPOOL: pool, redzone, is zeroed, flags
            0x1303 => {
                let is_new = self.pools.create(Pool {
                    anchor: pool,
                    redzone_bytes: second,
                    is_zeroed: third != 0,
                    is_meta: fourth & METAPOOL != 0,
                    auto_free: fourth & AUTO_FREE != 0,
                    pieces: std::collections::BTreeMap::new(),
                });
                if !is_new {
                    self.wrong_pool(engine, pool);
                }
            }
            // DESTROY_MEMPOOL
            0x1304 => match self.pools.destroy(pool) {
                Some(pool) => {
                    for piece in pool.pieces.values() {
                        shadow().forbid(piece.start, piece.bytes);
                    }
                }
                None => self.wrong_pool(engine, pool),
            },
            // MEMPOOL_ALLOC: pool, address, size
            0x1305 => {
                let stack = self.request_stack(engine);
                match self.pools.pool(pool) {
                    Some(found) => {
                        let redzone_bytes = found.redzone_bytes;
                        let is_meta = found.is_meta;
                        let piece = Custom { start: second, bytes: third, stack, redzone_bytes, is_piece: true };
                        found.pieces.insert(second, piece);
                        // Of a pool of blocks the blocks are announced one by one.
                        if is_meta {
                            shadow().forbid(second, third)
                        } else {
                            shadow().allow(second, third)
                        }
                        forbid_around(second, third, redzone_bytes);
                    }
                    None => self.wrong_pool(engine, pool),
                }
            }
            // MEMPOOL_FREE: pool, address
            0x1306 => self.pool_free(engine, pool, second),
            // MEMPOOL_TRIM: pool, address, size
            0x1307 => self.pool_trim(engine, pool, second, third),
            // MOVE_MEMPOOL: from, to
            0x1308 => match self.pools.pool(pool) {
                Some(found) => found.anchor = second,
                None => self.wrong_pool(engine, pool),
            },
            // MEMPOOL_CHANGE: pool, address, new address, size
            0x1309 => match self.pools.pool(pool) {
                Some(found) => match found.pieces.remove(&second) {
                    Some(piece) => {
                        found.pieces.insert(third, Custom { start: third, bytes: fourth, ..piece });
                        shadow().forbid(piece.start, piece.bytes);
                        shadow().allow(third, fourth);
                    }
                    None => self.wrong_piece(engine, second),
                },
                None => self.wrong_pool(engine, pool),
            },
            // MEMPOOL_EXISTS
            _ => return u64::from(self.pools.pool(pool).is_some()),
        }
        0
    }

    fn pool_free(&mut self, engine: &mut Engine, anchor: u64, start: u64) {
        let Some(pool) = self.pools.pool(anchor) else { return self.wrong_pool(engine, anchor) };
        let auto_free = pool.auto_free;
        let Some(piece) = pool.pieces.remove(&start) else { return self.wrong_piece(engine, start) };
        let stack = self.request_stack(engine);
        if auto_free {
            for block in self.pools.take_within(piece.start, piece.start + piece.bytes) {
                self.pools.remember_freed(block, stack);
            }
        }
        shadow().forbid(piece.start, piece.bytes);
        self.pools.remember_freed(piece, stack);
    }

    /// Only what lies within the range stays.
    fn pool_trim(&mut self, engine: &mut Engine, anchor: u64, start: u64, bytes: u64) {
        let end = start.saturating_add(bytes);
        let Some(pool) = self.pools.pool(anchor) else { return self.wrong_pool(engine, anchor) };
        let pieces = std::mem::take(&mut pool.pieces);
        for (_, piece) in pieces {
            let (low, high) = (piece.start.max(start), (piece.start + piece.bytes).min(end));
            shadow().forbid(piece.start, piece.bytes);
            if low < high {
                shadow().allow(low, high - low);
                pool.pieces.insert(low, Custom { start: low, bytes: high - low, ..piece });
            }
        }
    }

    fn wrong_pool(&mut self, engine: &mut Engine, anchor: u64) {
        self.walk_request(engine);
        let guest = engine.guest().clone();
        let message = "Illegal memory pool address".to_owned();
        self.report(&guest, ErrorKind::InvalidMemPool, "pool", message, Some(anchor));
    }

    /// A piece that is not there is a wrong free.
    fn wrong_piece(&mut self, engine: &mut Engine, start: u64) {
        self.walk_allocation_request(engine);
        let guest = engine.guest().clone();
        let function = leakscope_model::AllocFn::Free;
        self.report_misuse(&guest, leakscope_model::MisuseKind::InvalidFree, function, start, None);
    }
}
