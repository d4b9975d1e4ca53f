//! The executable memory that blocks are made from, and how its changes are noticed.
//!
//! - `Fixed`: the target cannot write to it; the tool reports mappings that change.
//! - `Writable`: a page from which blocks were made loses its write permission. The target's next store faults; the run
//!   loop gives the permission back, forgets the page's blocks and lets the store happen alone, so that code may even
//!   rewrite what follows in its own block.
//! - `Aliased`: written through another mapping, which no fault shows. Blocks compare their bytes when they are entered.
//!   Pages of `Writable` that fault all the time (code and data in one page) become `Aliased`.

use std::collections::BTreeMap;

use crate::cache::AddressMap;
use crate::{CodeKind, CodeRegion, memory};

/// So many faults turn a page's blocks into comparing ones.
const FAULTS_PER_PAGE: u32 = 64;
const PAGE: u64 = 0x1000;

#[derive(Debug, Default)]
pub(crate) struct Regions {
    list: Vec<CodeRegion>,
    /// Pages that are write-protected now, and the protection that the target gave them.
    protected: BTreeMap<u64, i32>,
    faults: AddressMap<u64, u32>,
}

impl Regions {
    /// The region around an address, if the tool named one.
    pub fn find(&self, pc: u64) -> Option<CodeRegion> {
        let behind = self.list.partition_point(|region| region.start <= pc);
        behind.checked_sub(1).map(|index| self.list[index]).filter(|region| pc < region.end)
    }

    /// Adds a region, in the place of those that became parts of it: pages of theirs are protected still.
    pub fn put(&mut self, region: CodeRegion) {
        self.list.retain(|other| other.end <= region.start || region.end <= other.start);
        let at = self.list.partition_point(|other| other.start < region.start);
        self.list.insert(at, region);
    }

    /// Forgets what the tool said of these addresses; their pages are not protected by us any more.
    pub fn forget(&mut self, start: u64, end: u64) {
        self.list.retain(|region| region.end <= start || end <= region.start);
        let pages: Vec<u64> = self.protected.range(start / PAGE..end.div_ceil(PAGE)).map(|(&page, _)| page).collect();
        for page in pages {
            self.protected.remove(&page);
        }
    }

    /// Before a block is made from a page: makes sure that its changes are noticed. Says whether the block must compare.
    pub fn watch(&mut self, start: u64, end: u64) -> bool {
        let Some(region) = self.find(start) else { return false };
        let (first, last) = (start / PAGE, end.div_ceil(PAGE));
        match region.kind {
            CodeKind::Fixed => false,
            CodeKind::Aliased => true,
            CodeKind::Writable => {
                if (first..last).any(|page| self.faults.get(&page).is_some_and(|&faults| faults >= FAULTS_PER_PAGE)) {
                    return true;
                }
                for page in first..last {
                    if self.protected.insert(page, region.protection).is_none() {
                        memory::protect(page * PAGE, (page + 1) * PAGE, region.protection & !libc::PROT_WRITE);
                    }
                }
                false
            }
        }
    }

    /// Gives write permission back to the pages of a range that are protected by us. Says whether there were any.
    pub fn unprotect(&mut self, start: u64, end: u64, by_fault: bool) -> bool {
        let pages: Vec<(u64, i32)> = self
            .protected
            .range(start / PAGE..end.div_ceil(PAGE))
            .map(|(&page, &protection)| (page, protection))
            .collect();
        for &(page, protection) in &pages {
            memory::protect(page * PAGE, (page + 1) * PAGE, protection);
            self.protected.remove(&page);
            if by_fault {
                *self.faults.entry(page).or_default() += 1;
            }
        }
        !pages.is_empty()
    }
}
