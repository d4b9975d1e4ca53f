//! Stacks as a report shows them: the allocation function in front, cut to `--num-callers`, named.

use std::cell::OnceCell;
use std::sync::Arc;

use leakscope_ledger::layout::site_flags;
use leakscope_model::{AllocFn, ErrorKind, MisuseKind};

use super::Options;
use crate::fingerprint::{self, Fingerprint, Step};
use crate::recording::{FrameRecord, Location, ProcessRecording};

/// What a hook's frame is called when we do not know our own library's name.
const HOOK_OBJECT: &str = "leakscope";

/// Frames of a stack that are looked at; a hostile recording could have millions.
const DEEPEST: usize = 1024;

/// A frame with its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Address in the running process: for a caller, inside of its call instruction.
    pub ip: u64,
    /// Link-time address.
    pub svma: u64,
    /// Name for people; `(below main)` for what starts a program, unless `--show-below-main`.
    pub function: Option<Arc<str>>,
    /// Name for the linker, where it is another.
    pub linkage_name: Option<Arc<str>>,
    /// Name of the source file.
    pub file: Option<Arc<str>>,
    /// Its directory.
    pub directory: Option<Arc<str>>,
    /// Line, 0 when unknown.
    pub line: u32,
    /// Column, 0 when unknown.
    pub column: u32,
    /// Whether it was inlined into the next frame.
    pub inlined: bool,
    /// Path of the module; empty when unknown. Of our own library its name alone: the place changes from machine to
    /// machine. Of a function that an engine stood in for, the module that has it.
    pub object: Arc<str>,
    /// Whether it is the allocation function's own frame, for which we stand.
    pub hook: bool,
    /// Number of the module in the recording.
    pub module: Option<u32>,
}

/// A stack, innermost frame first. The first one is the allocation function. Frames are shared between stacks:
/// a compiler run has 100,000 of them over a tenth as many addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    frames: Vec<Arc<Frame>>,
    /// Number of frames to show: up to `main`.
    shown: usize,
    flags: u32,
}

impl Stack {
    /// Whether frames are missing because the stack was deeper than the recorder keeps.
    pub fn is_cut(&self) -> bool {
        self.flags & site_flags::CUT_DEEP != 0
    }

    /// Whether the stack ends at code without unwind information.
    pub fn is_broken(&self) -> bool {
        self.flags & site_flags::BROKEN != 0
    }

    /// The frames to show: nothing below `main`, unless the options ask for it.
    pub fn frames(&self) -> &[Arc<Frame>] {
        &self.frames[..self.shown]
    }

    /// All frames up to `--num-callers` addresses; suppressions match these.
    pub fn all_frames(&self) -> &[Arc<Frame>] {
        &self.frames
    }
}

/// A location's frames, innermost first, and what the function means that the inlined ones are in.
struct Named {
    frames: Box<[Arc<Frame>]>,
    kind: Kind,
}

/// Makes stacks; each location is named once.
pub(super) struct Stacks<'a> {
    recorded: &'a ProcessRecording,
    num_callers: usize,
    show_below_main: bool,
    named: Vec<OnceCell<Named>>,
    steps: Vec<OnceCell<Box<[Step]>>>,
    hooks: Vec<OnceCell<Arc<Frame>>>,
    hook_object: Arc<str>,
    hook_start: u64,
}

impl<'a> Stacks<'a> {
    pub(super) fn new(recorded: &'a ProcessRecording, options: &Options) -> Self {
        let hook = recorded.hook_module.and_then(|number| recorded.modules.get(number as usize));
        Self {
            recorded,
            num_callers: options.num_callers.clamp(1, DEEPEST),
            show_below_main: options.show_below_main,
            named: (0..recorded.locations.len()).map(|_| OnceCell::new()).collect(),
            steps: (0..recorded.locations.len()).map(|_| OnceCell::new()).collect(),
            hooks: vec![OnceCell::new(); AllocFn::ALL.len() + AllocFn::KERNEL.len()],
            hook_object: hook.map_or_else(|| HOOK_OBJECT.into(), |module| file_name(&module.path).into()),
            hook_start: hook.map_or(0, |module| module.start),
        }
    }

    /// The identity of a site's stack for merging: its function and the first `addresses` - 1 locations.
    pub(super) fn key(&self, site: u32, addresses: usize) -> (AllocFn, Vec<u32>) {
        let function = self.function(site);
        (function, self.recorded.stack(site).take(addresses.min(self.num_callers) - 1).collect())
    }

    pub(super) fn function(&self, site: u32) -> AllocFn {
        self.recorded.sites.get(site as usize).map_or(AllocFn::Malloc, |site| site.function)
    }

    /// The stack of a site.
    pub(super) fn stack(&self, site: u32) -> Stack {
        let flags = self.recorded.sites.get(site as usize).map_or(0, |site| site.flags);
        let hook = self.own_frame(site).cloned();
        let callers = self.recorded.stack(site).take(self.num_callers - usize::from(hook.is_some()));
        self.stack_of(hook, callers, flags)
    }

    /// The stack of a node, with no allocation function in front.
    pub(super) fn bare(&self, leaf: u32) -> Stack {
        let nodes = self.recorded.nodes_from(leaf).take(self.num_callers);
        self.stack_of(None, nodes.map(|node| self.recorded.nodes[node as usize].location), 0)
    }

    /// The stack of a node that may begin in an allocation function for which an engine stood in: that frame is shown as
    /// those of sites are.
    pub(super) fn auxiliary(&self, leaf: u32) -> Stack {
        let mut stack = self.bare(leaf);
        let functions = &self.recorded.functions;
        if let Some(first) = stack.frames.first_mut()
            && let Some(place) = functions.iter().find(|place| place.address == first.ip)
        {
            let bare = Frame {
                function: Some(place.function.demangled().into()),
                linkage_name: Some(place.function.symbol().into()),
                file: None,
                directory: None,
                line: 0,
                column: 0,
                hook: true,
                ..(**first).clone()
            };
            *first = Arc::new(bare);
        }
        stack
    }

    fn stack_of(&self, first: Option<Arc<Frame>>, locations: impl Iterator<Item = u32>, flags: u32) -> Stack {
        let mut frames = Vec::with_capacity(2 * self.num_callers.min(16));
        frames.extend(first);
        let mut shown = None;
        for number in locations {
            let Some(named) = self.named(number) else { continue };
            frames.extend(named.frames.iter().cloned());
            // Inlined functions do not end a stack: the physical function of the address counts.
            match (named.kind, shown) {
                // Of several, the outermost `main` ends the stack, else the innermost function below main.
                (Kind::Main, _) => shown = Some((frames.len(), Kind::Main)),
                (Kind::BelowMain, None) => shown = Some((frames.len(), Kind::BelowMain)),
                _ => {}
            }
        }
        let shown = match shown {
            Some((shown, _)) if !self.show_below_main => shown,
            _ => frames.len(),
        };
        Stack { frames, shown, flags }
    }

    /// The frames of a site's stack, as [`Stack::all_frames`] has them.
    pub(super) fn frames(&self, site: u32) -> impl Iterator<Item = &Arc<Frame>> {
        let callers = self.recorded.stack(site).take(self.num_callers - 1).flat_map(|number| self.location(number));
        self.own_frame(site).into_iter().chain(callers)
    }

    /// The allocation function in front of a site's stack, if there is one.
    fn own_frame(&self, site: u32) -> Option<&Arc<Frame>> {
        let flags = self.recorded.sites.get(site as usize).map_or(0, |site| site.flags);
        (flags & site_flags::NO_FUNCTION == 0).then(|| self.hook(site))
    }

    fn hook(&self, site: u32) -> &Arc<Frame> {
        let function = self.function(site);
        self.hooks[function as usize].get_or_init(|| Arc::new(self.hook_frame(function)))
    }

    /// The fingerprint of a leak at `sites`: the least, so that their order does not matter.
    pub(super) fn leak_fingerprint(&self, sites: &[u32]) -> Fingerprint {
        let of_site = |&site: &u32| fingerprint::leak_at(&mut self.path(site));
        sites.iter().map(of_site).min().unwrap_or_default()
    }

    /// The fingerprint of a wrong call.
    pub(super) fn misuse_fingerprint(&self, kind: MisuseKind, site: u32) -> Fingerprint {
        fingerprint::misuse_at(kind, &mut self.path(site))
    }

    /// The fingerprint of a memory error at a node.
    pub(super) fn memory_fingerprint(&self, kind: ErrorKind, leaf: u32) -> Fingerprint {
        let locations =
            self.recorded.nodes_from(leaf).take(DEEPEST).map(|node| self.recorded.nodes[node as usize].location);
        fingerprint::memory_error_at(kind, &mut locations.flat_map(|number| self.steps(number)))
    }

    /// The whole recorded stack of a site, as far as fingerprints care.
    fn path(&self, site: u32) -> impl Iterator<Item = &Step> {
        self.recorded.stack(site).take(DEEPEST).flat_map(|number| self.steps(number))
    }

    fn steps(&self, number: u32) -> &[Step] {
        match self.steps.get(number as usize) {
            Some(cell) => cell.get_or_init(|| self.location(number).iter().map(|frame| Step::of(frame)).collect()),
            None => &[],
        }
    }

    fn hook_frame(&self, function: AllocFn) -> Frame {
        // Of a function that an engine stood in for: where the program has it.
        let place = self.recorded.functions.iter().find(|place| place.function == function);
        let own = place.and_then(|place| {
            let module = self.recorded.modules.get(place.module? as usize)?;
            Some((place.address, place.address.wrapping_sub(module.load_bias), module.path.clone(), place.module))
        });
        let (ip, svma, object, module) =
            own.unwrap_or_else(|| (self.hook_start, 0, self.hook_object.clone(), self.recorded.hook_module));
        Frame {
            ip,
            svma,
            function: Some(function.demangled().into()),
            linkage_name: Some(function.symbol().into()),
            file: None,
            directory: None,
            line: 0,
            column: 0,
            inlined: false,
            object,
            hook: true,
            module,
        }
    }

    fn location(&self, number: u32) -> &[Arc<Frame>] {
        self.named(number).map_or(&[], |named| &named.frames)
    }

    fn named(&self, number: u32) -> Option<&Named> {
        let location = self.recorded.locations.get(number as usize)?;
        Some(self.named.get(number as usize)?.get_or_init(|| {
            let frames = self.name(location);
            let kind = frames.last().map_or(Kind::Normal, |frame| kind(frame));
            Named { frames, kind }
        }))
    }

    fn name(&self, location: &Location) -> Box<[Arc<Frame>]> {
        let module = self.recorded.module_of(location);
        let bare = Frame {
            ip: location.pc,
            svma: module.map_or(location.pc, |module| location.pc.wrapping_sub(module.load_bias)),
            function: None,
            linkage_name: None,
            file: None,
            directory: None,
            line: 0,
            column: 0,
            inlined: false,
            object: module.map(|module| module.path.clone()).unwrap_or_default(),
            hook: false,
            module: location.module.checked_sub(1),
        };
        let frames = self.recorded.frames_of(location);
        if frames.is_empty() {
            return Box::from([Arc::new(bare)]);
        }
        frames.iter().map(|frame| Arc::new(self.frame(frame, bare.clone()))).collect()
    }

    fn frame(&self, record: &FrameRecord, bare: Frame) -> Frame {
        let name = |number: u32| (number != 0).then(|| self.recorded.string(number)).filter(|name| !name.is_empty());
        let mut frame = Frame {
            function: name(record.function),
            linkage_name: name(record.linkage_name),
            file: name(record.file),
            directory: name(record.directory),
            line: record.line,
            column: record.column,
            inlined: record.inlined,
            ..bare
        };
        if !self.show_below_main && kind(&frame) == Kind::BelowMain {
            frame.function = Some("(below main)".into());
            frame.linkage_name = None;
        }
        frame
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Main,
    BelowMain,
    Normal,
}

/// What a function means for the end of a stack. Source: Valgrind's manual on `--show-below-main`.
fn kind(frame: &Frame) -> Kind {
    let name = frame.linkage_name.as_deref().or(frame.function.as_deref()).unwrap_or_default();
    let name = name.split_once('@').map_or(name, |(front, _)| front);
    match name {
        "main" => Kind::Main,
        "_start"
        | "(below main)"
        | "__libc_start_call_main"
        | "__libc_start_main"
        | "__libc_start_main_impl"
        | "generic_start_main" => Kind::BelowMain,
        _ if name.starts_with("__libc_start_main.") || name.starts_with("generic_start_main.") => Kind::BelowMain,
        _ => Kind::Normal,
    }
}
