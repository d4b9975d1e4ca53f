//! The options, as the process outside hands them over: `name=value` lines.

use leakscope_model::{Heuristic, HeuristicSet};

use crate::heap::HeapOptions;

/// What the engine is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// For the heap.
    pub heap: HeapOptions,
    /// `--num-callers`.
    pub num_callers: usize,
    /// `--keep-stacktraces`: of allocations.
    pub keep_allocations: bool,
    /// `--keep-stacktraces`: of frees.
    pub keep_frees: bool,
    /// A leak check at the end: `--leak-check` is not `no`.
    pub leak_check: bool,
    /// `--leak-check-heuristics`.
    pub heuristics: HeuristicSet,
    /// `--error-limit`.
    pub error_limit: bool,
    /// `--error-exitcode`.
    pub error_exitcode: i32,
    /// `--exit-on-first-error`.
    pub exit_on_first_error: bool,
    /// `--show-mismatched-frees`.
    pub mismatched_frees: bool,
    /// `--show-realloc-size-zero`.
    pub realloc_zero: bool,
    /// `--partial-loads-ok`.
    pub partial_loads_ok: bool,
    /// `--trace-children`.
    pub trace_children: bool,
    /// `--trace-children-skip`: patterns of programs that run on their own.
    pub skipped_programs: Vec<String>,
    /// `--trace-children-skip-by-arg`: patterns of arguments of such programs.
    pub skipped_arguments: Vec<String>,
    /// `--check-arrays`
    pub check_arrays: bool,
    /// `--main-stacksize`, or 0.
    pub main_stack_bytes: u64,
    /// `--child-silent-after-fork`.
    pub child_silent: bool,
    /// `--track-fds`.
    pub track_fds: bool,
    /// `--run-libc-freeres` and `--run-cxx-freeres`.
    pub freeres: bool,
    /// `--soname-synonyms`: patterns of sonames whose allocator is replaced besides; `None` for every module's.
    pub allocator_sonames: Option<Vec<String>>,
    /// Mark the stack below the stack pointer.
    pub stack_marks: bool,
    /// `-v`: what the simulated CPU did is told at the end.
    pub statistics: bool,
    /// `--ignore-ranges`, `--ignore-range-below-sp`.
    pub ignored_ranges: Vec<(u64, u64)>,
    /// `--ignore-range-below-sp`: distances below the stack pointer.
    pub ignored_below_sp: Option<(u64, u64)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            heap: HeapOptions::default(),
            num_callers: 12,
            keep_allocations: true,
            keep_frees: true,
            leak_check: true,
            heuristics: HeuristicSet::ALL,
            error_limit: true,
            error_exitcode: 0,
            exit_on_first_error: false,
            mismatched_frees: true,
            realloc_zero: false,
            partial_loads_ok: true,
            trace_children: false,
            skipped_programs: Vec::new(),
            skipped_arguments: Vec::new(),
            check_arrays: false,
            main_stack_bytes: 0,
            child_silent: false,
            track_fds: false,
            freeres: true,
            allocator_sonames: None,
            stack_marks: true,
            statistics: false,
            ignored_ranges: Vec::new(),
            ignored_below_sp: None,
        }
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

impl Options {
    /// Reads the lines; what is unknown or wrong keeps its default, as both sides come from one build.
    pub fn parse(text: &str) -> Self {
        let mut options = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let _ = options.set(name, value);
        }
        options
    }

    /// Sets one option.
    pub fn change(&mut self, name: &str, value: &str) {
        let _ = self.set(name, value);
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        let flag = value == "yes";
        match name {
            "redzone-size" => self.heap.redzone_bytes = number(value)?,
            "freelist-vol" => self.heap.quarantine_bytes = number(value)?,
            "freelist-big-blocks" => self.heap.big_block_bytes = number(value)?,
            "malloc-fill" => self.heap.malloc_fill = Some(number(value)? as u8),
            "free-fill" => self.heap.free_fill = Some(number(value)? as u8),
            "alignment" => self.heap.alignment = number(value)?,
            "num-callers" => self.num_callers = (number(value)? as usize).clamp(1, 500),
            "keep-stacktraces" => {
                self.keep_allocations = value.contains("alloc");
                self.keep_frees = value.contains("free");
            }
            "leak-check" => self.leak_check = value != "no",
            "leak-check-heuristics" => {
                let bits = number(value)?;
                let set = Heuristic::ALL.into_iter().filter(|&one| bits & 1 << one as u64 != 0);
                self.heuristics = set.fold(HeuristicSet::NONE, HeuristicSet::with);
            }
            "error-limit" => self.error_limit = flag,
            "error-exitcode" => self.error_exitcode = number(value)? as i32,
            "exit-on-first-error" => self.exit_on_first_error = flag,
            "show-mismatched-frees" => self.mismatched_frees = flag,
            "show-realloc-size-zero" => self.realloc_zero = flag,
            "partial-loads-ok" => self.partial_loads_ok = flag,
            "trace-children" => self.trace_children = flag,
            "trace-children-skip" => self.skipped_programs = value.split(',').map(str::to_owned).collect(),
            "trace-children-skip-by-arg" => self.skipped_arguments = value.split(',').map(str::to_owned).collect(),
            "check-arrays" => self.check_arrays = flag,
            "main-stacksize" => self.main_stack_bytes = number(value)?,
            "child-silent-after-fork" => self.child_silent = flag,
            "track-fds" => self.track_fds = flag,
            "run-freeres" => self.freeres = flag,
            "allocator-sonames" => self.allocator_sonames = Some(value.split(',').map(str::to_owned).collect()),
            "stack-marks" => self.stack_marks = flag,
            "statistics" => self.statistics = flag,
            "ignore-ranges" => {
                for range in value.split(',') {
                    let (from, to) = range.split_once('-')?;
                    self.ignored_ranges.push((number(from)?, number(to)?));
                }
            }
            "ignore-range-below-sp" => {
                let (far, near) = value.split_once('-')?;
                self.ignored_below_sp = Some((number(far)?, number(near)?));
            }
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_by_table() {
        let options =
            Options::parse("redzone-size=32\nmalloc-fill=0xAB\nkeep-stacktraces=free\nbroken\nnum-callers=4\n");
        assert_eq!((options.heap.redzone_bytes, options.heap.malloc_fill), (32, Some(0xAB)));
        assert_eq!((options.keep_allocations, options.keep_frees, options.num_callers), (false, true, 4));
        let options = Options::parse("ignore-range-below-sp=8192-8189\nleak-check-heuristics=2\nerror-exitcode=9");
        assert_eq!(options.ignored_below_sp, Some((8192, 8189)));
        assert_eq!(options.heuristics.bits(), 2);
        assert_eq!(options.error_exitcode, 9);
        assert_eq!(Options::parse(""), Options::default());
    }
}
