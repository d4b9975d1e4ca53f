//! A log in which the reports of several tools, and other output, may stand among each other.

use std::io::{self, BufRead};

use crate::kernel_report::KernelReport;
use crate::kmemleak::Kmemleak;
use crate::lines::{Lines, without_colour};
use crate::memleak::Memleak;
use crate::page_owner::PageOwner;
use crate::sanitizer::Sanitizer;
use crate::sink::Sink;
use crate::valgrind_text::ValgrindText;

/// Reads a log; lines that belong to no tool are passed over.
pub(crate) fn read(input: &mut dyn BufRead, sink: &mut Sink) -> io::Result<()> {
    let mut lines = Lines::new(input);
    let mut sanitizer = Sanitizer::default();
    let mut valgrind = ValgrindText::default();
    let mut kmemleak = Kmemleak::default();
    let mut memleak = Memleak::default();
    let mut kernel_report = KernelReport::default();
    let mut page_owner = PageOwner::default();
    loop {
        let number = lines.number() + 1;
        let Some(line) = lines.next()? else { break };
        let line = without_colour(&line);
        // A dump of kmemleak may have millions of lines that no other parser needs to look at.
        if kmemleak.is_open() && kmemleak.line(sink, number, &line) {
            continue;
        }
        // A sanitizer's head looks like a line of Valgrind's, so it is asked first.
        let _taken = sanitizer.line(sink, number, &line)
            || valgrind.line(sink, number, &line)
            || kmemleak.line(sink, number, &line)
            || memleak.line(sink, number, &line)
            || kernel_report.line(sink, &line)
            || page_owner.line(sink, number, &line);
    }
    sanitizer.finish(sink);
    valgrind.finish(sink);
    kmemleak.finish(sink);
    memleak.finish(sink);
    kernel_report.finish(sink);
    page_owner.finish(sink);
    Ok(())
}
