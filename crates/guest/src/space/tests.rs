//! The list of mappings against an array of pages.

use super::*;
use proptest::prelude::*;

const BASE: u64 = 0x5000_0000;
const PAGES: usize = 48;

#[derive(Debug, Clone)]
enum Step {
    Map { first: usize, count: usize, protection: i32, file: bool, shared: bool },
    Unmap { first: usize, count: usize },
    Protect { first: usize, count: usize, protection: i32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0..PAGES, 1..12usize).prop_map(|(first, count)| (first, count.min(PAGES - first)));
    let map = (range.clone(), 0..8i32, any::<bool>(), any::<bool>())
        .prop_map(|((first, count), protection, file, shared)| Step::Map { first, count, protection, file, shared });
    let unmap = range.clone().prop_map(|(first, count)| Step::Unmap { first, count });
    let protect = (range, 0..8i32).prop_map(|((first, count), protection)| Step::Protect { first, count, protection });
    prop::collection::vec(prop_oneof![map, unmap, protect], 1..60)
}

/// What the model knows of a page: protection, whether it is shared, and its place in a file.
type Page = Option<(i32, bool, Option<u64>)>;

fn seen(space: &Space) -> Vec<Page> {
    (0..PAGES as u64)
        .map(|page| {
            let address = BASE + page * PAGE;
            space.find(address + 17).map(|mapping| {
                let offset = match &mapping.backing {
                    Backing::File { offset, .. } => Some(offset + address - mapping.start),
                    _ => None,
                };
                (mapping.protection, mapping.shared, offset)
            })
        })
        .collect()
}

proptest! {
    #[test]
    fn agrees_with_an_array_of_pages(steps in steps()) {
        let mut space = Space::new(&[]);
        let mut model: Vec<Page> = vec![None; PAGES];
        for step in steps {
            let at = |page: usize| BASE + page as u64 * PAGE;
            match step {
                Step::Map { first, count, protection, file, shared } => {
                    let backing = if file {
                        Backing::File { path: Arc::from(&b"f"[..]), offset: first as u64 * 7 * PAGE }
                    } else {
                        Backing::Anonymous
                    };
                    space.record(Mapping { start: at(first), end: at(first + count), protection, shared, backing });
                    for (place, page) in model[first..first + count].iter_mut().enumerate() {
                        let offset = (first as u64 * 7 + place as u64) * PAGE;
                        *page = Some((protection, shared, file.then_some(offset)));
                    }
                }
                Step::Unmap { first, count } => {
                    space.remove(at(first), at(first + count));
                    model[first..first + count].fill(None);
                }
                Step::Protect { first, count, protection } => {
                    space.protect(at(first), at(first + count), protection);
                    for page in model[first..first + count].iter_mut().flatten() {
                        page.0 = protection;
                    }
                }
            }
            prop_assert_eq!(&seen(&space), &model);
            let bytes = model.iter().flatten().count() as u64 * PAGE;
            prop_assert_eq!(space.mapped_bytes(), bytes);
            // Neighbours of private anonymous memory are one mapping, and none overlap.
            let all: Vec<_> = space.iter().cloned().collect();
            for pair in all.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start);
                prop_assert!(!pair[0].continues_as(&pair[1]), "{:?}", pair);
            }
        }
    }

    #[test]
    fn places_are_free(requests in prop::collection::vec((1..2000u64, any::<bool>()), 1..100)) {
        let own = LOW.start + 0x10_0000..LOW.start + 0x30_0000;
        let mut space = Space::new(std::slice::from_ref(&own));
        for (pages, low) in requests {
            let bytes = pages * PAGE;
            let Some(start) = space.place(bytes, low) else { continue };
            prop_assert!(space.is_free(start, start + bytes));
            prop_assert!(start + bytes <= own.start || own.end <= start);
            let window = if low { LOW } else { HIGH };
            prop_assert!(window.start <= start && start + bytes <= window.end);
            space.record(Mapping {
                start, end: start + bytes, protection: 3, shared: false, backing: Backing::Anonymous,
            });
        }
    }
}

/// Protections of lent memory against an array of pages: what is executable is code, and never write-protected by us.
#[test]
fn lent_memory_is_code_where_the_target_says_so() {
    let lent = BASE..BASE + PAGES as u64 * PAGE;
    let mut space = Space::new(&[]);
    space.lend(lent.clone());
    let mut model = [libc::PROT_READ | libc::PROT_WRITE; PAGES];
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..2000 {
        let first = random(PAGES as u64);
        let count = 1 + random(PAGES as u64 - first);
        let protection = random(8) as i32;
        space.protect(BASE + first * PAGE, BASE + (first + count) * PAGE, protection);
        model[first as usize..(first + count) as usize].fill(protection);
        for (page, &protection) in model.iter().enumerate() {
            let address = BASE + page as u64 * PAGE + 5;
            let region = space.code_region(address);
            assert_eq!(region.is_some(), protection & libc::PROT_EXEC != 0, "page {page}");
            let Some(region) = region else { continue };
            assert!(region.start <= address && address < region.end && region.protection == protection);
            let expected = if protection & libc::PROT_WRITE != 0 { CodeKind::Aliased } else { CodeKind::Fixed };
            assert_eq!(region.kind, expected);
        }
    }
    assert!(space.iter().next().is_none() && space.is_lent(lent.start) && !space.is_lent(lent.end));
}

#[test]
fn a_full_window_has_no_place() {
    let mut space = Space::new(&[]);
    let bytes = LOW.end - LOW.start;
    assert_eq!(space.place(bytes, true), Some(LOW.start));
    space.record(Mapping { start: LOW.start, end: LOW.end, protection: 0, shared: false, backing: Backing::Anonymous });
    assert_eq!(space.place(PAGE, true), None);
    space.remove(LOW.start + 7 * PAGE, LOW.start + 9 * PAGE);
    assert_eq!(space.place(PAGE, true), Some(LOW.start + 7 * PAGE));
    assert_eq!(space.place(2 * PAGE, true), Some(LOW.start + 7 * PAGE), "the place was not taken");
    assert_eq!(space.place(3 * PAGE, true), None);
}

#[test]
fn the_engine_is_cut_out() {
    let space = Space::new(&[]);
    let around = space.allowed(layout::HOT - PAGE, layout::PSEUDO.end + PAGE);
    assert_eq!(around.first(), Some(&(layout::HOT - PAGE..layout::HOT)));
    assert_eq!(around.last(), Some(&(layout::PSEUDO.end..layout::PSEUDO.end + PAGE)));
    assert!(around.iter().all(|part| !space.is_reserved(part.start, part.end)));
    assert!(space.is_reserved(layout::STATE, layout::STATE + PAGE));
    assert!(space.is_reserved(GUEST_END - PAGE, GUEST_END + PAGE));
}
