//! A small picture of a series, for mails: a line, its area, and four lines to read it by. No text: fonts are not
//! everywhere, and the mail says the numbers.

use tiny_skia::{Color, FillRule, Paint, PathBuilder, Pixmap, Stroke, Transform};

/// Size in pixels.
pub const WIDTH: u32 = 640;
/// Size in pixels.
pub const HEIGHT: u32 = 160;
const MARGIN: f32 = 6.0;

/// A PNG of a series (time, value), the lowest value at the bottom; `None` for fewer than two points.
pub fn png(series: &[(u64, f64)]) -> Option<Vec<u8>> {
    let (first, last) = (series.first()?.0, series.last()?.0);
    let finite = || series.iter().map(|&(_, value)| value).filter(|value| value.is_finite());
    let (low, high) = (finite().reduce(f64::min)?, finite().reduce(f64::max)?);
    if last <= first {
        return None;
    }
    let (width, height) = (WIDTH as f32 - 2.0 * MARGIN, HEIGHT as f32 - 2.0 * MARGIN);
    let spread = if high > low { high - low } else { 1.0 };
    let x = |at: u64| MARGIN + (at.saturating_sub(first) as f64 / (last - first) as f64) as f32 * width;
    let y = |value: f64| MARGIN + (1.0 - ((value - low) / spread) as f32) * height;
    let mut pixmap = Pixmap::new(WIDTH, HEIGHT)?;
    pixmap.fill(Color::WHITE);
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(0xdd, 0xdd, 0xdd, 0xff);
    for step in 0..=3 {
        let mut line = PathBuilder::new();
        let level = MARGIN + height * step as f32 / 3.0;
        line.move_to(MARGIN, level);
        line.line_to(MARGIN + width, level);
        pixmap.stroke_path(&line.finish()?, &paint, &Stroke::default(), Transform::identity(), None);
    }
    let mut line = PathBuilder::new();
    let mut area = PathBuilder::new();
    area.move_to(x(first), MARGIN + height);
    for (index, &(at, value)) in series.iter().filter(|(_, value)| value.is_finite()).enumerate() {
        if index == 0 {
            line.move_to(x(at), y(value))
        } else {
            line.line_to(x(at), y(value))
        }
        area.line_to(x(at), y(value));
    }
    area.line_to(x(last), MARGIN + height);
    area.close();
    paint.set_color_rgba8(0xd6, 0x45, 0x41, 0x30);
    pixmap.fill_path(&area.finish()?, &paint, FillRule::Winding, Transform::identity(), None);
    paint.set_color_rgba8(0xd6, 0x45, 0x41, 0xff);
    let stroke = Stroke { width: 2.0, ..Stroke::default() };
    pixmap.stroke_path(&line.finish()?, &paint, &stroke, Transform::identity(), None);
    pixmap.encode_png().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_where_the_values_are() {
        let series: Vec<(u64, f64)> = (0..100).map(|at| (at, at as f64)).collect();
        let picture = Pixmap::decode_png(&png(&series).unwrap()).unwrap();
        let is_red = |x: u32, y: u32| {
            let pixel = picture.pixel(x, y).unwrap();
            pixel.red() > 180 && pixel.green() < 120
        };
        for x in [20, 320, 600] {
            let y = HEIGHT - 1 - (x as f32 - MARGIN) as u32 * (HEIGHT - 12) / (WIDTH - 12) - MARGIN as u32;
            assert!((y - 3..=y + 3).any(|y| is_red(x, y)), "{x} {y}");
            assert!(!is_red(x, HEIGHT - 1 - y) || (y as i32 * 2 - HEIGHT as i32).abs() < 12);
        }
        assert_eq!(png(&[]), None);
        assert_eq!(png(&[(5, 1.0), (5, 2.0)]), None);
        assert_eq!(png(&[(5, f64::NAN), (6, f64::NAN)]), None);
        assert!(png(&[(5, 1.0), (6, 1.0)]).is_some());
    }
}
