//! The kernel's own allocation functions, which stand in front of a backtrace.
//!
//! Sources: Linux `mm/slub.c`, `mm/slab_common.c`, `mm/util.c`, `mm/vmalloc.c`, `mm/percpu.c`, `mm/page_alloc.c`,
//! `mm/memblock.c`, 4.4 to 6.18.

use leakscope_model::AllocFn;

use crate::dump::Frame;

/// Beginnings of names, and the function that a caller wrote.
const FRONTS: &[(&str, Option<AllocFn>)] = &[
    ("kmem_cache_alloc_trace", Some(AllocFn::Kmalloc)),
    ("kmem_cache_alloc_node_trace", Some(AllocFn::Kmalloc)),
    ("kmem_cache_alloc", Some(AllocFn::KmemCacheAlloc)),
    ("__kmem_cache_alloc", Some(AllocFn::KmemCacheAlloc)),
    ("kmalloc", Some(AllocFn::Kmalloc)),
    ("__kmalloc", Some(AllocFn::Kmalloc)),
    ("___kmalloc", Some(AllocFn::Kmalloc)),
    ("__do_kmalloc", Some(AllocFn::Kmalloc)),
    ("__do_krealloc", Some(AllocFn::Kmalloc)),
    ("__do_kvrealloc", Some(AllocFn::Kmalloc)),
    ("krealloc", Some(AllocFn::Kmalloc)),
    ("__krealloc", Some(AllocFn::Kmalloc)),
    ("kvmalloc", Some(AllocFn::Kmalloc)),
    ("__kvmalloc", Some(AllocFn::Kmalloc)),
    ("kvrealloc", Some(AllocFn::Kmalloc)),
    ("kzalloc", Some(AllocFn::Kmalloc)),
    ("vmalloc", Some(AllocFn::Vmalloc)),
    ("__vmalloc", Some(AllocFn::Vmalloc)),
    ("vzalloc", Some(AllocFn::Vmalloc)),
    ("alloc_vmap_area", None),
    ("__get_vm_area_node", None),
    ("pcpu_alloc", Some(AllocFn::AllocPercpu)),
    ("__alloc_percpu", Some(AllocFn::AllocPercpu)),
    ("__alloc_reserved_percpu", Some(AllocFn::AllocPercpu)),
    ("__alloc_pages", Some(AllocFn::AllocPages)),
    ("__alloc_frozen_pages", Some(AllocFn::AllocPages)),
    ("alloc_pages", Some(AllocFn::AllocPages)),
    ("alloc_frozen_pages", Some(AllocFn::AllocPages)),
    ("__folio_alloc", Some(AllocFn::AllocPages)),
    ("folio_alloc", Some(AllocFn::AllocPages)),
    ("get_free_pages", Some(AllocFn::AllocPages)),
    ("__get_free_pages", Some(AllocFn::AllocPages)),
    ("get_page_from_freelist", None),
    ("prep_new_page", None),
    ("post_alloc_hook", None),
    ("__set_page_owner", None),
    ("set_page_owner", None),
    ("memblock_alloc", Some(AllocFn::MemblockAlloc)),
    ("memblock_phys_alloc", Some(AllocFn::MemblockAlloc)),
    ("kmemleak_", None),
    ("create_object", None),
    ("__create_object", None),
    ("slab_post_alloc_hook", None),
    ("slab_alloc", None),
    ("___slab_alloc", None),
    ("__slab_alloc", None),
    ("new_slab", None),
    ("allocate_slab", None),
    ("alloc_slab_page", None),
    ("kasan_", None),
    ("__kasan_", None),
    ("set_track_prepare", None),
    ("stack_trace_save", None),
    ("save_stack", None),
    ("stack_depot", None),
];

/// Whether a function belongs to the allocator, and which allocation function it then stands for, if one.
pub fn allocator(function: &str) -> Option<Option<AllocFn>> {
    let known = |&&(front, _): &&(&str, Option<AllocFn>)| function.starts_with(front);
    FRONTS.iter().find(known).map(|&(_, stands_for)| stands_for)
}

/// How many functions in front of a stack, innermost first, are the allocator's own; and which function was called: the
/// outermost of them that a caller could have written. A stack that holds nothing else keeps its last function.
pub fn split_front<'a>(functions: impl IntoIterator<Item = &'a str>) -> (usize, AllocFn) {
    let (mut count, mut called, mut all) = (0, None, true);
    for function in functions {
        match allocator(function) {
            Some(stands_for) => {
                // `kvmalloc` above `__vmalloc_node_range`: what was really taken says more.
                called = match (called, stands_for) {
                    (Some(AllocFn::Vmalloc), Some(AllocFn::Kmalloc)) => called,
                    (_, stands_for) => stands_for.or(called),
                };
                count += 1;
            }
            None => {
                all = false;
                break;
            }
        }
    }
    if all && count > 0 {
        count -= 1;
    }
    (count, called.unwrap_or(AllocFn::Kmalloc))
}

/// The same of frames: the allocator is no module, whatever a module calls its functions.
pub fn split_frames(frames: &[Frame]) -> (usize, AllocFn) {
    let kernels = frames.iter().take_while(|frame| frame.module.is_empty()).count();
    let (count, function) = split_front(frames[..kernels].iter().map(|frame| frame.function.as_str()));
    // All of these may be the allocator's when a module called it.
    let is_all = kernels < frames.len() && frames[..kernels].iter().all(|frame| allocator(&frame.function).is_some());
    (if is_all { kernels } else { count }, function)
}

/// A function's name without what only some kernels add: allocation profiling (6.10) calls the function that does the
/// work `kstrdup_noprof`, and leaves a macro `kstrdup`.
pub fn plain_name(function: &str) -> &str {
    function.strip_suffix("_noprof").unwrap_or(function)
}

/// Frames that every system call, thread and interrupt has at its outer end, and that differ from kernel to kernel.
pub fn is_entry(function: &str) -> bool {
    const ENTRIES: [&str; 9] = [
        "do_syscall_64",
        "x64_sys_call",
        "do_syscall_x64",
        "entry_SYSCALL_64",
        "ret_from_fork",
        "el0_svc",
        "el0t_64_sync",
        "invoke_syscall",
        "do_el0_svc",
    ];
    ENTRIES.iter().any(|front| function.starts_with(front))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fronts_by_table() {
        for (stack, expected) in [
            (&["slab_post_alloc_hook", "kmem_cache_alloc_trace", "make", "init"][..], (2, AllocFn::Kmalloc)),
            (&["__kmalloc_cache_noprof", "make"], (1, AllocFn::Kmalloc)),
            (&["kmem_cache_alloc_noprof", "make"], (1, AllocFn::KmemCacheAlloc)),
            (&["__vmalloc_node_range_noprof", "vmalloc_noprof", "make"], (2, AllocFn::Vmalloc)),
            (&["__vmalloc_node_range", "kvmalloc_node", "make"], (2, AllocFn::Vmalloc)),
            (&["alloc_vmap_area", "__get_vm_area_node", "__vmalloc_node_range", "make"], (3, AllocFn::Vmalloc)),
            (&["pcpu_alloc_noprof", "make"], (1, AllocFn::AllocPercpu)),
            (&["post_alloc_hook", "get_page_from_freelist", "__alloc_pages", "make"], (3, AllocFn::AllocPages)),
            (&["kstrdup", "make"], (0, AllocFn::Kmalloc)),
            (&["kmem_cache_alloc"], (0, AllocFn::KmemCacheAlloc)),
            (&["kmem_cache_alloc", "kmem_cache_create", "make"], (1, AllocFn::KmemCacheAlloc)),
            (&[], (0, AllocFn::Kmalloc)),
        ] {
            assert_eq!(split_front(stack.iter().copied()), expected, "{stack:?}");
        }
        let frame = |function: &str, module: &str| Frame {
            function: function.to_owned(),
            module: module.to_owned(),
            ..Frame::default()
        };
        let named_alike = [frame("kmem_cache_alloc_trace", ""), frame("kmalloc_oob_right", "kasan_test")];
        assert_eq!(split_frames(&named_alike), (1, AllocFn::Kmalloc));
        assert_eq!(split_frames(&[frame("__kmalloc", ""), frame("make", "")]), (1, AllocFn::Kmalloc));
        assert_eq!(split_frames(&[]), (0, AllocFn::Kmalloc));
        assert_eq!(plain_name("kstrdup_noprof"), "kstrdup");
        assert!(is_entry("entry_SYSCALL_64_after_hwframe") && !is_entry("__x64_sys_init_module"));
    }
}
