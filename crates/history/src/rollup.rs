//! Rows to fewer rows: means over stretches of time.

use crate::codec::{METRICS, Row};

/// Means over stretches of `seconds`, which begin at multiples of it; a stretch with a restart gives a row for each life.
pub fn rollup(rows: &[Row], seconds: u64) -> Vec<Row> {
    rows.chunk_by(|a, b| a.at / seconds == b.at / seconds && a.life == b.life)
        .map(|stretch| {
            let values = std::array::from_fn(|metric| mean(stretch, metric));
            let lowest = stretch.iter().filter_map(|row| row.extremes.map(|(low, _)| low).or(row.values[0])).min();
            let highest = stretch.iter().filter_map(|row| row.extremes.map(|(_, high)| high).or(row.values[0])).max();
            Row { at: stretch[0].at / seconds * seconds, life: stretch[0].life, values, extremes: lowest.zip(highest) }
        })
        .collect()
}

fn mean(rows: &[Row], metric: usize) -> Option<u64> {
    debug_assert!(metric < METRICS);
    let known = || rows.iter().filter_map(|row| row.values[metric]);
    let count = known().count() as u128;
    let sum: u128 = known().map(u128::from).sum();
    (sum + count / 2).checked_div(count).map(|mean| mean as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(at: u64, life: u16, value: u64) -> Row {
        let mut values = [None; METRICS];
        values[0] = Some(value);
        Row { at, life, values, extremes: None }
    }

    #[test]
    fn by_hand() {
        let rows = [row(300, 0, 10), row(310, 0, 20), row(590, 0, 60), row(595, 1, 5), row(610, 1, 7)];
        let found = rollup(&rows, 300);
        let facts: Vec<_> = found.iter().map(|row| (row.at, row.life, row.values[0], row.extremes)).collect();
        assert_eq!(
            facts,
            [(300, 0, Some(30), Some((10, 60))), (300, 1, Some(5), Some((5, 5))), (600, 1, Some(7), Some((7, 7)))]
        );
        assert_eq!(rollup(&found, 3600)[0].extremes, Some((10, 60)));
        assert_eq!(found[0].values[1], None);
    }
}
