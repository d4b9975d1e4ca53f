//! The names of parameters against Memcheck's own messages: one program makes every call with addresses that nobody
//! may touch, under Valgrind; its messages must be what `check` names. A second time the arguments are undefined, and
//! the messages must be about the registers that the table says are read.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;

use leakscope_syscalls::{Access, Memory, check, lookup};

/// Stands for an address of which nothing may be touched: another one for each call, because Memcheck takes what some
/// failed calls were to write as written.
const BAD: u64 = 0x1000;
/// Where those addresses begin, and those that stand in the page.
const BAD_OF_CALLS: u64 = 0x5000_0000;
const BAD_IN_PAGE: u64 = 0x6000_0000;
/// A page that the program maps, with the structures below in it.
const PAGE: u64 = 0x4000_0000;
const VECTOR: u64 = PAGE;
const MESSAGE: u64 = PAGE + 0x100;
const TEXT: u64 = PAGE + 0x200;
const POINTERS: u64 = PAGE + 0x300;
const LENGTH: u64 = PAGE + 0x400;
const BLOCKS: u64 = PAGE + 0x600;
const SET: u64 = PAGE + 0x700;

/// What is in the page.
fn image() -> Vec<u8> {
    let mut image = vec![0; 4096];
    let mut put = |at: u64, words: &[u64]| {
        for (index, word) in words.iter().enumerate() {
            let place = (at - PAGE) as usize + index * 8;
            image[place..place + 8].copy_from_slice(&word.to_le_bytes());
        }
    };
    put(VECTOR, &[BAD_IN_PAGE, 16, BAD_IN_PAGE + 64, 16]);
    put(MESSAGE, &[BAD_IN_PAGE, 16, VECTOR, 2, BAD_IN_PAGE + 256, 32, 0]);
    put(TEXT, &[u64::from_le_bytes(*b"/no/such"), 0]);
    put(POINTERS, &[BAD_IN_PAGE, BAD_IN_PAGE + 8, 0]);
    put(LENGTH, &[16]);
    put(SET, &[BAD_IN_PAGE, 8]);
    // An asynchronous write of 16 bytes.
    put(BLOCKS, &[BLOCKS + 64]);
    put(BLOCKS + 64, &[0, 0, 1, BAD_IN_PAGE, 16, 0, 0, 0]);
    image
}

/// The page, and nothing else.
struct Page(Vec<u8>);

impl Memory for Page {
    fn read_bytes(&self, address: u64, into: &mut [u8]) -> bool {
        let Some(offset) = address.checked_sub(PAGE) else { return false };
        let found = usize::try_from(offset).ok().and_then(|at| self.0.get(at..at.checked_add(into.len())?));
        found.map(|bytes| into.copy_from_slice(bytes)).is_some()
    }
}

/// The calls, each with addresses of its own.
fn calls() -> impl Iterator<Item = (u64, [u64; 6])> {
    CALLS.iter().enumerate().map(|(index, (number, args))| {
        let bad = BAD_OF_CALLS + index as u64 * 0x1_0000;
        (*number, args.map(|arg| if arg == BAD { bad } else { arg }))
    })
}

/// Calls, with their arguments. No descriptor is open under 900, no process has the number of `NOBODY`.
const FD: u64 = 900;
const NOBODY: u64 = 0x3fff_fff0;

#[rustfmt::skip]
const CALLS: &[(u64, [u64; 6])] = &[
    (0, [FD, BAD, 16, 0, 0, 0]), (1, [3, BAD, 16, 0, 0, 0]), (2, [BAD, 0, 0, 0, 0, 0]), (4, [BAD, BAD, 0, 0, 0, 0]),
    (5, [FD, BAD, 0, 0, 0, 0]), (6, [BAD, BAD, 0, 0, 0, 0]), (7, [BAD, 1, 0, 0, 0, 0]), (13, [10, BAD, BAD, 8, 0, 0]),
    (14, [0, BAD, BAD, 8, 0, 0]), (17, [FD, BAD, 16, 0, 0, 0]), (18, [FD, BAD, 16, 0, 0, 0]),
    (19, [FD, BAD, 2, 0, 0, 0]), (19, [FD, VECTOR, 2, 0, 0, 0]), (20, [FD, BAD, 2, 0, 0, 0]),
    (20, [FD, VECTOR, 2, 0, 0, 0]), (21, [BAD, 0, 0, 0, 0, 0]), (22, [BAD, 0, 0, 0, 0, 0]),
    (23, [16, BAD, BAD, BAD, BAD, 0]), (26, [BAD, 4096, 0, 0, 0, 0]), (27, [PAGE, 4096, BAD, 0, 0, 0]),
    (35, [BAD, BAD, 0, 0, 0, 0]), (36, [0, BAD, 0, 0, 0, 0]), (38, [0, BAD, BAD, 0, 0, 0]),
    (40, [FD, FD, BAD, 16, 0, 0]), (42, [FD, BAD, 16, 0, 0, 0]), (43, [FD, BAD, BAD, 0, 0, 0]),
    (43, [FD, BAD, LENGTH, 0, 0, 0]), (44, [FD, BAD, 16, 0, BAD, 16]), (45, [FD, BAD, 16, 0, BAD, BAD]),
    (45, [FD, BAD, 16, 0, BAD, LENGTH]), (46, [FD, BAD, 0, 0, 0, 0]), (46, [FD, MESSAGE, 0, 0, 0, 0]),
    (47, [FD, BAD, 0, 0, 0, 0]), (47, [FD, MESSAGE, 0, 0, 0, 0]), (49, [FD, BAD, 16, 0, 0, 0]),
    (51, [FD, BAD, BAD, 0, 0, 0]), (51, [FD, BAD, LENGTH, 0, 0, 0]), (52, [FD, BAD, LENGTH, 0, 0, 0]),
    (52, [FD, BAD, BAD, 0, 0, 0]), (53, [1, 1, 0, BAD, 0, 0]), (54, [FD, 1, 2, BAD, 4, 0]),
    (55, [FD, 1, 2, BAD, LENGTH, 0]), (55, [FD, 1, 2, BAD, BAD, 0]), (59, [BAD, POINTERS, POINTERS, 0, 0, 0]),
    (59, [TEXT, BAD, BAD, 0, 0, 0]), (61, [NOBODY, BAD, 0, BAD, 0, 0]), (63, [BAD, 0, 0, 0, 0, 0]),
    (65, [NOBODY, BAD, 1, 0, 0, 0]), (66, [NOBODY, 0, 3, BAD, 0, 0]), (69, [NOBODY, BAD, 16, 0, 0, 0]),
    (70, [NOBODY, BAD, 16, 0, 0, 0]), (71, [NOBODY, 3, BAD, 0, 0, 0]), (71, [NOBODY, 1, BAD, 0, 0, 0]),
    (72, [FD, 5, BAD, 0, 0, 0]), (72, [FD, 6, BAD, 0, 0, 0]), (72, [FD, 15, BAD, 0, 0, 0]),
    (72, [FD, 16, BAD, 0, 0, 0]), (76, [BAD, 0, 0, 0, 0, 0]), (78, [FD, BAD, 16, 0, 0, 0]),
    (79, [BAD, 16, 0, 0, 0, 0]), (80, [BAD, 0, 0, 0, 0, 0]), (82, [BAD, BAD, 0, 0, 0, 0]), (83, [BAD, 0, 0, 0, 0, 0]),
    (84, [BAD, 0, 0, 0, 0, 0]), (85, [BAD, 0, 0, 0, 0, 0]), (86, [BAD, BAD, 0, 0, 0, 0]), (87, [BAD, 0, 0, 0, 0, 0]),
    (88, [BAD, BAD, 0, 0, 0, 0]), (89, [BAD, BAD, 16, 0, 0, 0]), (90, [BAD, 0, 0, 0, 0, 0]),
    (92, [BAD, 0, 0, 0, 0, 0]), (94, [BAD, 0, 0, 0, 0, 0]), (96, [BAD, BAD, 0, 0, 0, 0]), (97, [1, BAD, 0, 0, 0, 0]),
    (98, [0, BAD, 0, 0, 0, 0]), (99, [BAD, 0, 0, 0, 0, 0]), (100, [BAD, 0, 0, 0, 0, 0]),
    (101, [12, NOBODY, 0, BAD, 0, 0]), (101, [13, NOBODY, 0, BAD, 0, 0]), (101, [14, NOBODY, 0, BAD, 0, 0]),
    (101, [1, NOBODY, 0, BAD, 0, 0]), (101, [0x4201, NOBODY, 0, BAD, 0, 0]), (101, [0x4202, NOBODY, 0, BAD, 0, 0]),
    (101, [0x4203, NOBODY, 0, BAD, 0, 0]), (101, [0x4204, NOBODY, 1, BAD, 0, 0]),
    (101, [0x4204, NOBODY, 1, VECTOR, 0, 0]), (101, [0x4205, NOBODY, 1, VECTOR, 0, 0]), (103, [3, BAD, 16, 0, 0, 0]),
    (115, [4, BAD, 0, 0, 0, 0]), (116, [4, BAD, 0, 0, 0, 0]), (118, [BAD, BAD, BAD, 0, 0, 0]),
    (120, [BAD, BAD, BAD, 0, 0, 0]), (125, [BAD, BAD, 0, 0, 0, 0]), (126, [BAD, BAD, 0, 0, 0, 0]),
    (127, [BAD, 8, 0, 0, 0, 0]), (128, [BAD, BAD, BAD, 8, 0, 0]), (129, [NOBODY, 10, BAD, 0, 0, 0]),
    (131, [BAD, BAD, 0, 0, 0, 0]), (132, [BAD, BAD, 0, 0, 0, 0]), (133, [BAD, 0, 0, 0, 0, 0]),
    (137, [BAD, BAD, 0, 0, 0, 0]), (138, [FD, BAD, 0, 0, 0, 0]), (142, [NOBODY, BAD, 0, 0, 0, 0]),
    (143, [NOBODY, BAD, 0, 0, 0, 0]), (144, [NOBODY, 0, BAD, 0, 0, 0]), (148, [NOBODY, BAD, 0, 0, 0, 0]),
    (155, [BAD, BAD, 0, 0, 0, 0]), (157, [2, BAD, 0, 0, 0, 0]), (157, [15, BAD, 0, 0, 0, 0]),
    (157, [16, BAD, 0, 0, 0, 0]), (157, [5, BAD, 0, 0, 0, 0]), (157, [9, BAD, 0, 0, 0, 0]),
    (157, [11, BAD, 0, 0, 0, 0]), (157, [19, BAD, 0, 0, 0, 0]), (158, [0x1003, BAD, 0, 0, 0, 0]),
    (159, [BAD, 0, 0, 0, 0, 0]), (160, [4, BAD, 0, 0, 0, 0]), (161, [BAD, 0, 0, 0, 0, 0]),
    (163, [BAD, 0, 0, 0, 0, 0]), (164, [BAD, BAD, 0, 0, 0, 0]), (165, [BAD, BAD, BAD, 0, 0, 0]),
    (166, [BAD, 0, 0, 0, 0, 0]), (170, [BAD, 16, 0, 0, 0, 0]), (175, [BAD, 16, BAD, 0, 0, 0]),
    (176, [BAD, 0, 0, 0, 0, 0]), (179, [0, BAD, 0, 0, 0, 0]), (188, [BAD, BAD, BAD, 16, 0, 0]),
    (189, [BAD, BAD, BAD, 16, 0, 0]), (190, [FD, BAD, BAD, 16, 0, 0]), (191, [BAD, BAD, BAD, 16, 0, 0]),
    (192, [BAD, BAD, BAD, 16, 0, 0]), (193, [FD, BAD, BAD, 16, 0, 0]), (194, [BAD, BAD, 16, 0, 0, 0]),
    (195, [BAD, BAD, 16, 0, 0, 0]), (196, [FD, BAD, 16, 0, 0, 0]), (197, [BAD, BAD, 0, 0, 0, 0]),
    (198, [BAD, BAD, 0, 0, 0, 0]), (199, [FD, BAD, 0, 0, 0, 0]), (201, [BAD, 0, 0, 0, 0, 0]),
    (202, [BAD, 0, 0, BAD, 0, 0]), (202, [BAD, 1, 0, 0, 0, 0]), (202, [BAD, 4, 0, 0, BAD, 0]),
    (203, [NOBODY, 8, BAD, 0, 0, 0]), (204, [NOBODY, 8, BAD, 0, 0, 0]), (206, [1, BAD, 0, 0, 0, 0]),
    (208, [0, 0, 1, BAD, BAD, 0]), (209, [0, 1, BAD, 0, 0, 0]), (209, [0, 1, BLOCKS, 0, 0, 0]),
    (210, [0, BAD, BAD, 0, 0, 0]), (217, [FD, BAD, 16, 0, 0, 0]), (220, [NOBODY, BAD, 1, BAD, 0, 0]),
    (222, [1, BAD, BAD, 0, 0, 0]), (223, [99, 0, BAD, BAD, 0, 0]), (224, [99, BAD, 0, 0, 0, 0]),
    (227, [99, BAD, 0, 0, 0, 0]), (228, [1, BAD, 0, 0, 0, 0]), (229, [1, BAD, 0, 0, 0, 0]),
    (230, [1, 0, BAD, BAD, 0, 0]), (232, [FD, BAD, 1, 0, 0, 0]), (233, [FD, 1, FD, BAD, 0, 0]),
    (235, [BAD, BAD, 0, 0, 0, 0]), (237, [PAGE, 4096, 0, BAD, 65, 0]), (238, [1, BAD, 65, 0, 0, 0]),
    (239, [BAD, BAD, 65, 0, 0, 0]), (240, [BAD, 0o100, 0, BAD, 0, 0]), (241, [BAD, 0, 0, 0, 0, 0]),
    (242, [FD, BAD, 16, 0, BAD, 0]), (243, [FD, BAD, 16, BAD, BAD, 0]), (244, [FD, BAD, 0, 0, 0, 0]),
    (245, [FD, BAD, BAD, 0, 0, 0]), (247, [1, NOBODY, BAD, 4, BAD, 0]), (248, [BAD, BAD, BAD, 16, 0, 0]),
    (249, [BAD, BAD, BAD, 0, 0, 0]), (250, [1, BAD, 0, 0, 0, 0]), (250, [2, 0, BAD, 16, 0, 0]),
    (250, [6, 0, BAD, 16, 0, 0]), (250, [10, 0, BAD, BAD, 0, 0]), (250, [11, 0, BAD, 16, 0, 0]),
    (250, [12, 0, BAD, 16, 0, 0]), (254, [FD, BAD, 0, 0, 0, 0]), (257, [FD, BAD, 0, 0, 0, 0]),
    (258, [FD, BAD, 0, 0, 0, 0]), (259, [FD, BAD, 0, 0, 0, 0]), (260, [FD, BAD, 0, 0, 0, 0]),
    (261, [FD, BAD, BAD, 0, 0, 0]), (262, [FD, BAD, BAD, 0, 0, 0]), (263, [FD, BAD, 0, 0, 0, 0]),
    (264, [FD, BAD, FD, BAD, 0, 0]), (265, [FD, BAD, FD, BAD, 0, 0]), (266, [BAD, FD, BAD, 0, 0, 0]),
    (267, [FD, BAD, BAD, 16, 0, 0]), (268, [FD, BAD, 0, 0, 0, 0]), (269, [FD, BAD, 0, 0, 0, 0]),
    (270, [16, BAD, BAD, BAD, BAD, BAD]), (270, [0, 0, 0, 0, 0, SET]), (271, [BAD, 1, BAD, BAD, 8, 0]),
    (273, [BAD, 24, 0, 0, 0, 0]), (274, [NOBODY, BAD, BAD, 0, 0, 0]), (275, [FD, BAD, FD, BAD, 16, 0]),
    (279, [NOBODY, 2, BAD, BAD, BAD, 0]), (280, [FD, BAD, BAD, 0, 0, 0]), (281, [FD, BAD, 1, 0, BAD, 8]),
    (282, [FD, BAD, 8, 0, 0, 0]), (286, [FD, 0, BAD, BAD, 0, 0]), (287, [FD, BAD, 0, 0, 0, 0]),
    (288, [FD, BAD, LENGTH, 0, 0, 0]), (289, [FD, BAD, 8, 0, 0, 0]), (293, [BAD, 0, 0, 0, 0, 0]),
    (295, [FD, BAD, 2, 0, 0, 0]), (295, [FD, VECTOR, 2, 0, 0, 0]), (296, [FD, BAD, 2, 0, 0, 0]),
    (296, [FD, VECTOR, 2, 0, 0, 0]), (297, [NOBODY, NOBODY, 10, BAD, 0, 0]), (298, [BAD, 0, 0, 0, 0, 0]),
    (301, [FD, 0, 0, FD, BAD, 0]), (302, [NOBODY, 1, BAD, BAD, 0, 0]), (303, [FD, BAD, BAD, BAD, 0, 0]),
    (305, [99, BAD, 0, 0, 0, 0]), (310, [NOBODY, BAD, 2, BAD, 2, 0]), (310, [NOBODY, VECTOR, 2, BAD, 2, 0]),
    (311, [NOBODY, BAD, 2, BAD, 2, 0]), (313, [FD, BAD, 0, 0, 0, 0]), (314, [NOBODY, BAD, 0, 0, 0, 0]),
    (316, [FD, BAD, FD, BAD, 0, 0]), (318, [BAD, 16, 0, 0, 0, 0]), (319, [BAD, 0, 0, 0, 0, 0]),
    (326, [FD, BAD, FD, BAD, 16, 0]), (327, [FD, VECTOR, 2, 0, 0, 0]), (328, [FD, VECTOR, 2, 0, 0, 0]),
    (332, [FD, BAD, 0, 0, BAD, 0]), (425, [1, BAD, 0, 0, 0, 0]), (439, [FD, BAD, 0, 0, 0, 0]),
    // Calls that have registers alone.
    (3, [FD, 0, 0, 0, 0, 0]), (8, [FD, 0, 0, 0, 0, 0]), (9, [0, 0, 0, 0, FD, 0]), (10, [BAD, 4096, 0, 0, 0, 0]),
    (11, [BAD, 4096, 0, 0, 0, 0]), (12, [0; 6]), (25, [BAD, 4096, 4096, 0, 0, 0]), (28, [BAD, 4096, 99, 0, 0, 0]),
    (29, [0, 0, 0, 0, 0, 0]), (31, [NOBODY, 0, 0, 0, 0, 0]), (32, [FD, 0, 0, 0, 0, 0]), (33, [FD, FD, 0, 0, 0, 0]),
    (37, [0; 6]), (41, [99, 0, 0, 0, 0, 0]), (48, [FD, 0, 0, 0, 0, 0]), (50, [FD, 0, 0, 0, 0, 0]),
    (62, [NOBODY, 0, 0, 0, 0, 0]), (64, [0, 0, 0, 0, 0, 0]), (67, [BAD, 0, 0, 0, 0, 0]), (68, [0; 6]),
    (72, [FD, 1, 0, 0, 0, 0]), (72, [FD, 2, 0, 0, 0, 0]), (73, [FD, 0, 0, 0, 0, 0]), (74, [FD, 0, 0, 0, 0, 0]),
    (75, [FD, 0, 0, 0, 0, 0]), (77, [FD, 0, 0, 0, 0, 0]), (81, [FD, 0, 0, 0, 0, 0]), (91, [FD, 0, 0, 0, 0, 0]),
    (93, [FD, 0, 0, 0, 0, 0]), (95, [0; 6]), (109, [NOBODY, 0, 0, 0, 0, 0]), (121, [NOBODY, 0, 0, 0, 0, 0]),
    (124, [NOBODY, 0, 0, 0, 0, 0]), (135, [u64::MAX, 0, 0, 0, 0, 0]), (140, [0, NOBODY, 0, 0, 0, 0]),
    (141, [0, NOBODY, 0, 0, 0, 0]), (145, [NOBODY, 0, 0, 0, 0, 0]), (146, [0; 6]), (147, [0; 6]),
    (149, [BAD, 4096, 0, 0, 0, 0]), (150, [BAD, 4096, 0, 0, 0, 0]), (151, [0; 6]), (157, [1, 99, 0, 0, 0, 0]),
    (157, [23, 1, 0, 0, 0, 0]), (200, [NOBODY, 0, 0, 0, 0, 0]), (207, [0; 6]), (213, [0; 6]),
    (218, [BAD, 0, 0, 0, 0, 0]), (221, [FD, 0, 0, 0, 0, 0]), (225, [99, 0, 0, 0, 0, 0]), (226, [99, 0, 0, 0, 0, 0]),
    (234, [NOBODY, NOBODY, 0, 0, 0, 0]), (240, [BAD, 0, 0, 0, 0, 0]), (250, [0, 0, 0, 0, 0, 0]),
    (250, [8, 0, 0, 0, 0, 0]), (250, [13, 0, 0, 0, 0, 0]), (252, [1, NOBODY, 0, 0, 0, 0]), (255, [FD, 0, 0, 0, 0, 0]),
    (272, [0; 6]), (276, [FD, FD, 16, 0, 0, 0]), (277, [FD, 0, 0, 0, 0, 0]), (283, [99, 0, 0, 0, 0, 0]),
    (285, [FD, 0, 0, 0, 0, 0]), (291, [99, 0, 0, 0, 0, 0]), (292, [FD, FD, 0, 0, 0, 0]), (294, [99, 0, 0, 0, 0, 0]),
    (300, [u64::MAX, 0, 0, 0, 0, 0]), (306, [FD, 0, 0, 0, 0, 0]), (308, [FD, 0, 0, 0, 0, 0]),
    (312, [NOBODY, NOBODY, 1, 0, 0, 0]), (436, [900, 901, 0, 0, 0, 0]),
    // Requests.
    (16, [FD, 0x5401, BAD, 0, 0, 0]), (16, [FD, 0x5402, BAD, 0, 0, 0]), (16, [FD, 0x5405, BAD, 0, 0, 0]),
    (16, [FD, 0x5406, BAD, 0, 0, 0]), (16, [FD, 0x540f, BAD, 0, 0, 0]), (16, [FD, 0x5410, BAD, 0, 0, 0]),
    (16, [FD, 0x5413, BAD, 0, 0, 0]), (16, [FD, 0x5414, BAD, 0, 0, 0]), (16, [FD, 0x5415, BAD, 0, 0, 0]),
    (16, [FD, 0x5416, BAD, 0, 0, 0]), (16, [FD, 0x541b, BAD, 0, 0, 0]), (16, [FD, 0x541e, BAD, 0, 0, 0]),
    (16, [FD, 0x5421, BAD, 0, 0, 0]), (16, [FD, 0x5452, BAD, 0, 0, 0]), (16, [FD, 0x545d, BAD, 0, 0, 0]),
    (16, [FD, 0x5460, BAD, 0, 0, 0]), (16, [FD, 0x8004_5430, BAD, 0, 0, 0]), (16, [FD, 0x4004_5431, BAD, 0, 0, 0]),
    (16, [FD, 0x5411, BAD, 0, 0, 0]), (16, [FD, 0x890b, BAD, 0, 0, 0]), (16, [FD, 0x8910, BAD, 0, 0, 0]),
    (16, [FD, 0x8913, BAD, 0, 0, 0]), (16, [FD, 0x8914, BAD, 0, 0, 0]), (16, [FD, 0x8915, BAD, 0, 0, 0]),
    (16, [FD, 0x8916, BAD, 0, 0, 0]), (16, [FD, 0x8921, BAD, 0, 0, 0]), (16, [FD, 0x8922, BAD, 0, 0, 0]),
    (16, [FD, 0x8927, BAD, 0, 0, 0]), (16, [FD, 0x8933, BAD, 0, 0, 0]), (16, [FD, 0x8942, BAD, 0, 0, 0]),
    (16, [FD, 0x8904, BAD, 0, 0, 0]), (16, [FD, 0x8905, BAD, 0, 0, 0]), (16, [FD, 0x8906, BAD, 0, 0, 0]),
    (16, [FD, 0x1260, BAD, 0, 0, 0]), (16, [FD, 0x8008_1272, BAD, 0, 0, 0]), (16, [FD, 0x125d, BAD, 0, 0, 0]),
    (16, [FD, 0x1268, BAD, 0, 0, 0]), (16, [FD, 1, BAD, 0, 0, 0]), (16, [FD, 2, BAD, 0, 0, 0]),
    (16, [FD, 0x0301, BAD, 0, 0, 0]), (16, [FD, 0x8024_7009, BAD, 0, 0, 0]), (16, [FD, 0x4600, BAD, 0, 0, 0]),
    (16, [FD, 0x4b33, BAD, 0, 0, 0]), (16, [FD, 0x4b3b, BAD, 0, 0, 0]), (16, [FD, 0x8004_54cf, BAD, 0, 0, 0]),
    (16, [FD, 0x4004_54ca, BAD, 0, 0, 0]), (16, [FD, 0x8008_2407, BAD, 0, 0, 0]),
    (16, [FD, 0x4008_7a01, BAD, 0, 0, 0]), (16, [FD, 0x8008_7a01, BAD, 0, 0, 0]),
    (16, [FD, 0xc008_7a01, BAD, 0, 0, 0]), (16, [FD, 0x5305, BAD, 0, 0, 0]),
];

/// Makes the calls that stand in a file, after it has mapped the page that stands in another.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <valgrind/memcheck.h>
int main(int argc, char **argv) {
    void *page = mmap((void *)0x40000000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    int image = open(argv[1], O_RDONLY);
    FILE *calls = fopen(argv[2], "r");
    static unsigned long plan[1000][7];
    int count = 0;
    if (page == MAP_FAILED || calls == NULL || read(image, page, 4096) != 4096) return 1;
    for (; count < 1000; count++) {
        unsigned long *p = plan[count];
        if (fscanf(calls, "%lu %lu %lu %lu %lu %lu %lu", p, p + 1, p + 2, p + 3, p + 4, p + 5, p + 6) != 7) break;
    }
    /* In a child, and in another one from the next call on if Valgrind itself dies of one. */
    volatile int *next = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    while (*next < count) {
        int child = fork();
        if (child == 0) {
            while (*next < count) {
                unsigned long *p = plan[(*next)++];
                if (argc > 3) VALGRIND_MAKE_MEM_UNDEFINED(p + 1, 48);
                alarm(10);
                syscall(p[0], p[1], p[2], p[3], p[4], p[5], p[6]);
            }
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
    return 42;
}
"#;

/// What is wrong with the arguments.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Unaddressable,
    Undefined,
}

/// Every parameter that Memcheck complains of in the calls above.
fn memcheck(wrong: Wrong) -> BTreeSet<String> {
    let folder = tempfile::tempdir().expect("scratch folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("program.c"), PROGRAM).expect("source");
    std::fs::write(at("image"), image()).expect("image");
    let mut list = String::new();
    for (number, a) in calls() {
        writeln!(list, "{number} {} {} {} {} {} {}", a[0], a[1], a[2], a[3], a[4], a[5]).expect("a string");
    }
    std::fs::write(at("calls"), list).expect("calls");
    let gcc = Command::new("gcc").arg("-o").args([at("program"), at("program.c")]).status().expect("start gcc");
    assert!(gcc.success());
    let log = at("log");
    let output = Command::new("valgrind")
        .args(["--error-limit=no", "--num-callers=1", "--leak-check=no", "--default-suppressions=no"])
        .arg(format!("--log-file={}", log.display()))
        .args([at("program"), at("image"), at("calls")])
        .args((wrong == Wrong::Undefined).then_some("undefined"))
        .output()
        .expect("start valgrind");
    assert_eq!(output.status.code(), Some(42), "{}", std::fs::read_to_string(&log).unwrap_or_default());
    let log = std::fs::read_to_string(log).expect("Valgrind's log");
    let end = match wrong {
        Wrong::Unaddressable => " points to unaddressable",
        Wrong::Undefined => " contains uninitialised",
    };
    let params = log.lines().filter_map(|line| line.split_once("Syscall param ")?.1.split_once(end));
    params.map(|(name, _)| name.to_owned()).collect()
}

/// Every parameter of which `check` names bytes outside of the page.
fn ours() -> BTreeSet<String> {
    let page = Page(image());
    let mut names = BTreeSet::new();
    for (number, args) in calls() {
        check(number, &args, &page, &mut |region| {
            let is_inside = region.address >= PAGE && region.address + region.length <= PAGE + 4096;
            // What is only copied Memcheck does not look at.
            if !is_inside && region.access != Access::Copy {
                names.insert(region.param.to_string());
            }
        });
    }
    names
}

/// What we name and Memcheck does not, and why.
const OURS: &[(&str, &str)] = &[
    ("adjtimex(timex->modes)", "only looked at if the whole structure is addressable"),
    ("execve(envp)", "an unaddressable array lets the call fail without a word"),
    ("name_to_handle_at(handle)", "only looked at if its length is addressable"),
];

#[test]
fn parameters_have_memchecks_names() {
    let (theirs, ours) = (memcheck(Wrong::Unaddressable), ours());
    let missing: Vec<&String> = theirs.difference(&ours).collect();
    let is_known = |name: &str| OURS.iter().any(|(known, _)| *known == name);
    let added: Vec<&String> = ours.difference(&theirs).filter(|name| !is_known(name)).collect();
    println!("{} names are the same", ours.intersection(&theirs).count());
    assert!(missing.is_empty() && added.is_empty(), "only Memcheck: {missing:#?}\nonly we: {added:#?}");
    assert!(ours.intersection(&theirs).count() >= 300);
}

/// Every register that the table says is read.
fn our_registers() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (number, args) in calls() {
        let call = lookup(number).expect("in the table");
        let used = call.registers(&args);
        names.extend(
            (0..6)
                .filter(|index| used >> index & 1 == 1)
                .filter_map(|index| Some(call.register(&args, index)?.to_string())),
        );
    }
    names
}

/// Registers that the kernel reads and Memcheck does not look at, or that it writes in the way told below.
const OUR_REGISTERS: &[&str] = &[
    "copy_file_range(fd_in)",
    "copy_file_range(fd_out)",
    "copy_file_range(flags)",
    "copy_file_range(len)",
    "copy_file_range(off_in)",
    "copy_file_range(off_out)",
    "fchownat(flag)",
    "fstatat(flag)",
    "getsockopt(optlen)",
    "unlinkat(flag)",
];

#[test]
fn registers_have_memchecks_names() {
    let (theirs, ours) = (memcheck(Wrong::Undefined), our_registers());
    // `copy_file_range("len")`, with quotes, and `getsockopt(*optlen)`; half an offset that nobody looks at.
    let is_odd = |name: &&String| name.contains(['"', '*']) || *name == "pwritev2(offset_high)";
    let missing: Vec<&String> = theirs.difference(&ours).filter(|name| !is_odd(name)).collect();
    let is_known = |name: &&String| OUR_REGISTERS.contains(&name.as_str());
    let added: Vec<&String> = ours.difference(&theirs).filter(|name| !is_known(name)).collect();
    println!("{} registers are the same", ours.intersection(&theirs).count());
    assert!(missing.is_empty() && added.is_empty(), "only Memcheck: {missing:#?}\nonly we: {added:#?}");
}
