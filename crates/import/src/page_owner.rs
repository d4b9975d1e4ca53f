//! What the kernel's page_owner lists: each allocated page (`page_owner`), or pages by stack (`page_owner_stacks`).
//!
//! Sources: Linux `mm/page_owner.c`, 4.4 to 6.18; `tools/mm/page_owner_sort.c`, which puts a count in front.
//!
//! ```text
//! Page allocated via order 2, mask 0x..., pid 1, tgid 1 (swapper/0), ts 91710483 ns, free_ts 0 ns
//! PFN 0x100 type Unmovable Block 0 type Unmovable Flags 0x0(zone=0)
//!  register_early_stack+0x3b/0x60
//!                                                   a blank line ends a page
//!  f+0x1/0x2
//! nr_base_pages: 16                                 of page_owner_stacks, until 6.10 "stack_count: 4"
//! ```
//!
//! Nothing says whether anybody still knows a page: the pages are live, and not classified.

use leakscope_kernel::alloc::{is_entry, split_frames};
use leakscope_kernel::dump::{Frame, decode_frame, without_prefix};
use leakscope_model::{AllocFn, Tool};

use crate::kmemleak::{KERNEL, plain_stack};
use crate::lines::leading_decimal;
use crate::sink::{Base, Front, Sink};

/// Bytes of a page; architectures with others do not say so in the list.
const PAGE_BYTES: u64 = 4096;
/// An order above this is none of any kernel.
const LARGEST_ORDER: u64 = 32;
/// page_owner keeps 16.
const MOST_FRAMES: usize = 64;

/// Reads the lines of lists.
#[derive(Default)]
pub(crate) struct PageOwner {
    /// Bytes and blocks of the page that is open, as far as they are known.
    open: Option<(u64, u64)>,
    frames: Vec<Frame>,
    /// How often the page that follows is there.
    times: u64,
}

fn order(text: &str) -> Option<u64> {
    let (order, _) = leading_decimal(text.strip_prefix("Page allocated via order ")?)?;
    (order <= LARGEST_ORDER).then_some(order)
}

/// Whether a text has a page in it.
pub(crate) fn is_list(text: &str) -> bool {
    text.lines().any(|line| order(without_prefix(line)).is_some() || stack_pages(line.trim()).is_some())
}

/// `nr_base_pages: 16` and `stack_count: 4`: pages of all allocations with the stack above.
fn stack_pages(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("nr_base_pages:").or_else(|| text.strip_prefix("stack_count:"))?;
    leading_decimal(digits.trim_start()).map(|(pages, _)| pages)
}

impl PageOwner {
    /// Reads a line if it belongs to a list.
    pub(crate) fn line(&mut self, sink: &mut Sink, number: u64, line: &str) -> bool {
        let text = without_prefix(line);
        if let Some(order) = order(text) {
            self.close(sink);
            let times = std::mem::take(&mut self.times).max(1);
            self.open = Some(((PAGE_BYTES << order).saturating_mul(times), times));
            return true;
        }
        if let Some(times) = leading_decimal(text).filter(|(_, rest)| rest.starts_with(" times, ")) {
            self.times = times.0;
            return true;
        }
        if let Some(pages) = stack_pages(text.trim()) {
            self.open = Some((pages.saturating_mul(PAGE_BYTES), pages));
            self.close(sink);
            return true;
        }
        let is_indented = text.starts_with(' ');
        let frame = decode_frame(text).filter(|_| is_indented);
        if self.open.is_none() {
            // A stack of page_owner_stacks comes before its count; anything else comes to nothing.
            match frame {
                Some(frame) if self.frames.len() < MOST_FRAMES => self.frames.push(frame),
                _ => self.frames.clear(),
            }
            return false;
        }
        if text.trim().is_empty() {
            self.close(sink);
        } else if let Some(frame) = frame {
            if self.frames.len() < MOST_FRAMES {
                self.frames.push(frame);
            }
        } else if is_indented {
            sink.unread(number, line);
        } else if !text.starts_with("PFN ")
            && !text.starts_with("Page has been migrated")
            && !text.starts_with("Charged")
        {
            self.close(sink);
            return false;
        }
        true
    }

    fn close(&mut self, sink: &mut Sink) {
        let frames = std::mem::take(&mut self.frames);
        let Some((bytes, blocks)) = self.open.take() else { return };
        let process = sink.process(0, Tool::PageOwner);
        let process = &mut sink[process];
        process.out.process.executable = "the kernel".to_owned();
        process.out.process.command_line = vec!["the kernel".to_owned()];
        let kernel = process.module(KERNEL, Base::LinkTime, 0, None);
        process.out.hook_module = kernel.checked_sub(1);
        let (front, _) = split_frames(&frames);
        let end = frames.iter().position(|frame| is_entry(&frame.function)).unwrap_or(frames.len());
        let leaf = plain_stack(process, &frames[front.min(end)..end]);
        let site = process.site(leaf, Front::Absent(AllocFn::AllocPages));
        process.live(site, bytes, blocks);
    }

    /// The end of the log.
    pub(crate) fn finish(&mut self, sink: &mut Sink) {
        self.close(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_by_table() {
        assert_eq!(order("Page allocated via order 2, mask 0x0(), pid 0"), Some(2));
        assert_eq!(order("Page allocated via order 99, mask 0x0()"), None);
        assert_eq!(order("Page allocated via order x"), None);
        assert_eq!((stack_pages("nr_base_pages: 16"), stack_pages("stack_count: 4")), (Some(16), Some(4)));
        assert_eq!(stack_pages("nr_base_pages: x"), None);
    }
}
