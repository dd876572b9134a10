//! Plots as inline SVG: lines over two axes, and waterfalls. Nothing but elements and attributes, so that the page needs
//! no script and nothing from elsewhere.

use std::fmt::Write;

/// How values lie on an axis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By their logarithm; values at or below zero are left out.
    Log,
}

/// One axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What is on it, with the unit.
    pub title: &'static str,
    /// How.
    pub scale: Scale,
    /// Values that get a mark, with what stands there.
    pub marks: Vec<(f64, String)>,
    low: f64,
    high: f64,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// Which set it belongs to: its colour.
    pub set: usize,
    /// What it says when pointed at.
    pub label: String,
    /// Where it goes.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 46.0;
/// As many colours does the page have.
pub const COLOURS: usize = 6;

/// Text that cannot be taken for an element.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not even as a reference may the others stand in a document.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

impl Axis {
    /// Over these values, marked at round numbers; from zero on, if linear.
    pub fn over(
        title: &'static str,
        scale: Scale,
        values: impl Iterator<Item = f64>,
        show: impl Fn(f64) -> String,
    ) -> Axis {
        let usable = |value: &f64| value.is_finite() && (scale == Scale::Linear || *value > 0.0);
        let (mut low, mut high) = (f64::MAX, f64::MIN);
        for value in values.filter(usable) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (1.0, 1.0);
        }
        match scale {
            Scale::Linear => {
                let high = if high > 0.0 { high } else { 1.0 };
                let rough = high / 5.0;
                let power = 10f64.powf(rough.log10().floor());
                let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
                let step = steps.into_iter().find(|step| *step >= rough).unwrap_or(rough);
                let count = (high / step).ceil() as usize;
                let marks = (0..=count).map(|at| at as f64 * step);
                let marks = marks.map(|at| (at, show(at))).collect();
                Axis { title, scale, marks, low: 0.0, high: count as f64 * step }
            }
            Scale::Log => {
                let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
                let last = last.max(first + 1);
                let marks = (first..=last).map(|power| 10f64.powi(power));
                let marks = marks.map(|at| (at, show(at))).collect();
                Axis { title, scale, marks, low: 10f64.powi(first), high: 10f64.powi(last) }
            }
        }
    }

    /// With these marks, the outermost of which are its ends.
    pub fn marked(title: &'static str, marks: Vec<(f64, String)>) -> Axis {
        let low = marks.first().map_or(0.0, |mark| mark.0);
        let high = marks.last().map_or(1.0, |mark| mark.0).max(low + 1.0);
        Axis { title, scale: Scale::Linear, marks, low, high }
    }

    /// Where a value lies: 0 to 1.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => {
                (value.log10() - self.low.log10()) / (self.high.log10() - self.low.log10())
            }
        }
    }
}

fn across(x: &Axis, value: f64) -> f64 {
    LEFT + x.place(value) * (WIDTH - LEFT - RIGHT)
}

fn up(y: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM)
}

fn open(out: &mut String, height: f64, title: &str) {
    let title = escape(title);
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" role=\"img\" aria-label=\"{title}\">"
    );
}

/// Lines over two axes. A line of one point is a dot.
pub fn lines(title: &str, x: &Axis, y: &Axis, lines: &[Line]) -> String {
    let mut out = String::new();
    open(&mut out, HEIGHT, title);
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for (value, text) in &y.marks {
        let at = up(y, *value);
        let text = escape(text);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"y\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
            LEFT - 8.0,
            at + 4.0
        );
    }
    for (value, text) in &x.marks {
        let at = across(x, *value);
        let text = escape(text);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text class=\"x\" x=\"{at:.1}\" y=\"{:.1}\">{text}</text>",
            bottom + 16.0
        );
    }
    let middle = (LEFT + right) / 2.0;
    let _ = writeln!(
        out,
        "<text class=\"x\" x=\"{middle:.1}\" y=\"{:.1}\">{}</text>\
         <text class=\"x\" transform=\"translate(14 {:.1}) rotate(-90)\">{}</text>",
        HEIGHT - 8.0,
        escape(x.title),
        (TOP + bottom) / 2.0,
        escape(y.title)
    );
    for line in lines {
        let usable = |(_, value): &&(f64, f64)| y.scale == Scale::Linear || *value > 0.0;
        let points: Vec<String> = line
            .points
            .iter()
            .filter(usable)
            .map(|(at, value)| format!("{:.1},{:.1}", across(x, *at), up(y, *value)))
            .collect();
        let (colour, label) = (line.set % COLOURS, escape(&line.label));
        match &points[..] {
            [] => {}
            [one] => {
                let (cx, cy) = one.split_once(',').unwrap_or((one, one));
                let _ = writeln!(
                    out,
                    "<circle class=\"dot{colour}\" cx=\"{cx}\" cy=\"{cy}\" r=\"4\"><title>{label}</title></circle>"
                );
            }
            _ => {
                let _ = writeln!(
                    out,
                    "<polyline class=\"line{colour}\" points=\"{}\"><title>{label}</title></polyline>",
                    points.join(" ")
                );
            }
        }
    }
    out.push_str("</svg>\n");
    out
}

/// One bar of a waterfall.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What stands at its left.
    pub name: String,
    /// Where it begins.
    pub from: f64,
    /// How long it is.
    pub length: f64,
    /// What stands at its end.
    pub shown: String,
    /// How it is drawn.
    pub kind: BarKind,
}

/// What a bar is of the whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// A step of it.
    Step,
    /// Something that goes on inside of a step.
    Within,
    /// All of it.
    Whole,
}

const ROW: f64 = 24.0;
/// Room for the text at a bar's end.
const SHOWN: f64 = 110.0;

/// Bars below each other; `longest` is what the whole width stands for.
pub fn waterfall(title: &str, set: usize, longest: f64, bars: &[Bar]) -> String {
    let mut out = String::new();
    open(&mut out, ROW * bars.len() as f64 + 8.0, title);
    let scale = (WIDTH - LEFT - RIGHT - SHOWN) / if longest > 0.0 { longest } else { 1.0 };
    let colour = set % COLOURS;
    for (at, bar) in bars.iter().enumerate() {
        let top = ROW * at as f64 + 4.0;
        let (from, width) = (LEFT + bar.from * scale, (bar.length * scale).max(1.0));
        let kind = match bar.kind {
            BarKind::Step => "step",
            BarKind::Within => "within",
            BarKind::Whole => "whole",
        };
        let text = top + ROW / 2.0 + 2.0;
        let _ = writeln!(
            out,
            "<text class=\"y\" x=\"{:.1}\" y=\"{text:.1}\">{}</text>\
             <rect class=\"{kind} fill{colour}\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" \
             height=\"{:.1}\"/><text x=\"{:.1}\" y=\"{text:.1}\">{}</text>",
            LEFT - 8.0,
            escape(&bar.name),
            ROW - 6.0,
            from + width + 6.0,
            escape(&bar.shown)
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let show = |value: f64| format!("{value}");
        let linear = Axis::over("t", Scale::Linear, [3.0, 870.0].into_iter(), show);
        let marks: Vec<&str> = linear.marks.iter().map(|mark| mark.1.as_str()).collect();
        assert_eq!(marks, ["0", "200", "400", "600", "800", "1000"]);
        assert_eq!((linear.place(0.0), linear.place(500.0), linear.place(1000.0)), (0.0, 0.5, 1.0));
        let log = Axis::over("t", Scale::Log, [0.0, 30.0, 1000.0].into_iter(), show);
        let marks: Vec<&str> = log.marks.iter().map(|mark| mark.1.as_str()).collect();
        assert_eq!(marks, ["10", "100", "1000"]);
        assert!((log.place(100.0) - 0.5).abs() < 1e-9);
        for scale in [Scale::Linear, Scale::Log] {
            let nothing = Axis::over("t", scale, std::iter::empty(), show);
            assert!(nothing.marks.len() >= 2, "{nothing:?}");
            assert!(nothing.place(1.0).is_finite());
        }
    }

    #[test]
    fn what_files_say_stays_text() {
        assert_eq!(escape("<a href='x'>&\"\u{1}"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}");
        let axis = Axis::over("t", Scale::Linear, [1.0].into_iter(), |value| format!("<{value}>"));
        let line = Line { set: 7, label: "</svg>".into(), points: vec![(1.0, 1.0), (2.0, 0.5)] };
        let svg = lines("<t>", &axis, &axis, &[line]);
        assert_eq!(svg.matches("</svg>").count(), 1, "{svg}");
        assert!(svg.contains("line1"), "{svg}");
    }
}
