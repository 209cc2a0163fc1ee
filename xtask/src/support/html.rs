//! Pages that need nothing from elsewhere.

/// What all pages look like, in the light and in the dark.
pub const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2em;color:#222;background:#fff}\
table{border-collapse:collapse}td,th{padding:.25em .7em;text-align:left;border-bottom:1px solid #ddd}\
.n{text-align:right;font-variant-numeric:tabular-nums}figure{display:inline-block;margin:0 2em 1em 0}polyline{fill:none;stroke:#06c;stroke-width:1.5}\n\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#111}td,th{border-color:#333}polyline{stroke:#6af}}\n";

/// A text as it may stand in a page, in quotation marks too.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
