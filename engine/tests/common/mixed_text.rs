//! One megabyte of text that is hard to tokenise, the same on every machine.

/// Bytes of the text.
pub const MIXED_TEXT_BYTES: usize = 1_000_000;

/// Pieces of text, one kind a row. The generator strings pieces together, now and then from one row only.
const ROWS: [&[&str]; 9] = [
    // English prose with contractions and punctuation.
    &[
        "The quick brown fox jumps over the lazy dog. ",
        "It's what we'd call \"remarkable\", isn't it? ",
        "They'll've said so; I'M SURE WE'RE DONE -- you can't, he'd say. ",
        "Call me Ishmael. Some years ago, never mind how long precisely, ",
        "having little or no money in my purse, and nothing particular to interest me on shore, ",
        "supercalifragilisticexpialidocious antidisestablishmentarianism ",
        "end-of-line\n",
        "Chapter ",
    ],
    // Digits.
    &[
        "0",
        "7",
        "42",
        "1234567890",
        "3.14159265358979",
        " 2026-11-24T13:49:42Z ",
        "0xDEADBEEF",
        "1e-9",
        "٠١٢٣٤",
        "१२३",
        "½",
        "Ⅷ",
        "²³",
        "𝟘𝟙𝟚",
        "①②③",
        " 99 ",
        "1,000,000",
    ],
    // Code.
    &[
        "fn main() {\n    println!(\"{}\", x + 1);\n}\n",
        "def f(a, b=None):\n\treturn a[0] if a else b\n",
        "#include <stdio.h>\r\n",
        "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }\n",
        "SELECT * FROM t WHERE id = 7 AND name LIKE '%x%';",
        "<div class=\"a\">&nbsp;&amp;</div>",
        "let re = /^[\\w.+-]+@[\\w-]+\\.[a-z]{2,}$/i; // ==> !== ?? ||= \n",
        "{\"k\": [1, 2.5, null, true]}",
        "snake_case_name camelCaseName __init__ $HOME ~/.bashrc C:\\Windows\\ ",
    ],
    // Scripts.
    &[
        "Übergrößenträger straße ÅÄÖ ñandú façade œuvre ",
        "Всё смешалось в доме Облонских. ",
        "Μῆνιν ἄειδε θεὰ Πηληϊάδεω Ἀχιλῆος ",
        "בְּרֵאשִׁית בָּרָא אֱלֹהִים ",
        "السلام عليكم ورحمة الله ",
        "नमस्ते दुनिया क्षत्रिय ",
        "สวัสดีชาวโลก ",
        "你好，世界。春眠不覺曉，處處聞啼鳥。",
        "こんにちは世界、カタカナとひらがな。",
        "안녕하세요 세계 ",
        "Xin chào thế giới ",
        "ᚠᛇᚻ ᛒᛦᚦ ",
        "𐍈𐌰𐌹 𒀭𒂗 𓀀𓁐 ",
        "გამარჯობა Բարեւ ሰላም ꦲꦏ ",
    ],
    // Emoji: joined, with skin tones, flags, keycaps, tags, variation selectors.
    &[
        "😀",
        "😂🤣",
        "👩\u{200d}👩\u{200d}👧\u{200d}👦",
        "👋🏽",
        "🧑🏿\u{200d}🚀",
        "🏳\u{fe0f}\u{200d}🌈",
        "🇩🇪🇯🇵🇧",
        "1\u{fe0f}\u{20e3}",
        "❤\u{fe0f}\u{200d}🔥",
        "🏴\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
        "✂\u{fe0e}",
        "🫠",
        "👨🏻\u{200d}🤝\u{200d}👨🏾 ",
        "\u{200d}",
        "🏽",
    ],
    // Combining marks and other code points without a place of their own.
    &[
        "e\u{301}",
        "Z\u{351}\u{36b}\u{343}a\u{328}\u{30d}l\u{333}g\u{336}o\u{489}",
        "n\u{303}\u{303}\u{303}",
        "\u{301}",
        "a\u{20dd}",
        "\u{feff}",
        "\u{200b}",
        "\u{202e}abc\u{202c}",
        "\u{ad}",
        "\u{fffd}",
        "\u{fffe}",
        "\u{e000}",
        "\u{378}",
        "\u{10ffff}",
        "\u{40000}",
        "\u{8ffff}",
        "\u{10d4a}",
        "\u{1c89}",
        "\u{1e5d0}",
        "\u{2ffc}",
        "ǅ",
        "ﬃ",
        "İı",
        "ſ",
        "K",
        "'ſ",
        "ª",
        "ʰ",
        "々",
        "〇",
        "ⅷ",
    ],
    // White space.
    &[
        " ",
        "  ",
        "   ",
        "\t",
        "\t\t  ",
        "\n",
        "\n\n",
        "\r\n",
        "\r\n\r\n",
        "\r",
        " \n",
        "\n ",
        "\u{a0}",
        "\u{a0} ",
        " \u{2003}\u{2003}",
        "\u{3000}",
        "\u{85}",
        "\u{2028}",
        "\u{2029}",
        "\u{1680}",
        "\u{b}",
        "\u{c}",
        "\u{1c}",
        "\u{180e}",
        "\u{205f} ",
        " \u{202f}",
    ],
    // Control characters and punctuation.
    &[
        "\u{2}",
        "\u{1}",
        "\u{4}",
        "\u{6}",
        "\u{13}",
        "\u{14}",
        "\u{16}\u{1d}",
        "a\u{4}b",
        "\u{1b}[31m",
        "\u{7f}",
        "\u{80}",
        "\u{9f}",
        "!!!",
        "?!?",
        "...",
        "…",
        "—",
        "“q”",
        "‘s",
        "’s",
        "'s",
        "'S",
        "'t 're'll",
        " '",
        "''",
        "`",
        "$5",
        "€9",
        "©®™",
        "∀x∈ℝ: ⌈x⌉ ≠ −x",
        "│├──┤",
        "░▒▓█",
        "、。",
        "¿¡",
        "§¶",
        "= = =",
        "-----------",
    ],
    // What looks like special tokens.
    &[
        "<|im_start|>user\n",
        "<|im_end|>",
        "<|endoftext|>",
        "<file_sep>",
        "<repo_name",
        "<|im_start",
        "|>",
        "<empty_output>",
        "<s>",
        "</s>",
        "[INST]",
    ],
];

/// Byte sequences that are not UTF-8. None spells a value past U+10FFFF in four well-formed bytes, which the program
/// that the golden ids come from does not survive; nor is there a NUL byte, at which it would stop reading.
const INVALID: [&[u8]; 30] = [
    b"\xFF",
    b"\xFE\xFF",
    b"\x80",
    b"\xBF\xBF\xBF",
    b"\xC0\x80",
    b"\xC1\x81",
    b"\xC1\xA1",
    b"\xE0\x80\xAF",
    b"\xE0\x9F\xBF",
    b"\xF0\x80\x80\xAF",
    b"\xF0\x8F\xBF\xBF",
    b"\xED\xA0\x80",
    b"\xED\xBF\xBF",
    b"\xED\xA0\xBD\xED\xB8\x80",
    b"\xC3",
    b"\xC3 ",
    b"\xE2",
    b"\xE2\x82",
    b"\xE2\x82 x",
    b"\xE2\x28\xA1",
    b"\xF0\x9F",
    b"\xF0\x9F\x98",
    b"\xF0\x9F\x98\x20",
    b"\xF0\x28\x8C\xBC",
    b"\xF5\x41",
    b"\xF8\x88\x80\x80\x80",
    b"\xFC\x84\x80\x80\x80\x80",
    b"\xC3\xC3\xA9",
    b"\xE4\xBD\xE4\xBD\xA0",
    b"caf\xE9 na\xEFve",
];

/// A small generator of random numbers (SplitMix64, Steele et al. 2014), so that no dependency can change the text.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The text: `MIXED_TEXT_BYTES` bytes, cut wherever they end. Changing anything here changes the golden token ids.
pub fn mixed_text() -> Vec<u8> {
    let mut random = Random(0x6B76_7469_6572);
    let mut text: Vec<u8> = Vec::with_capacity(MIXED_TEXT_BYTES + 4096);
    while text.len() < MIXED_TEXT_BYTES {
        match random.below(40) {
            // A passage of one kind.
            0..=19 => {
                let row = ROWS[random.below(ROWS.len())];
                for _ in 0..=random.below(12) {
                    text.extend(row[random.below(row.len())].bytes());
                }
            }
            // A passage of prose, so that most bytes look like a document.
            20..=29 => {
                for _ in 0..=random.below(8) {
                    text.extend(ROWS[0][random.below(ROWS[0].len())].bytes());
                }
            }
            // Kinds side by side.
            30..=34 => {
                for _ in 0..=random.below(10) {
                    let row = ROWS[random.below(ROWS.len())];
                    text.extend(row[random.below(row.len())].bytes());
                }
            }
            // A long run of one kind of white space, or of one letter.
            35 => {
                let unit = [" ", "\n", "\t", "\r\n", "\u{3000}", "a", "=", "é", "0"][random.below(9)];
                text.extend(unit.repeat(1 + random.below(300)).bytes());
            }
            // Any character at all.
            36 => {
                for _ in 0..=random.below(20) {
                    let point = 1 + (random.next() % 0x10_FFFF) as u32;
                    let c = char::from_u32(point).unwrap_or('\u{fffd}');
                    text.extend(c.to_string().bytes());
                }
            }
            // Any character of the first planes, where most are assigned.
            37 => {
                for _ in 0..=random.below(20) {
                    let c = char::from_u32(1 + random.below(0x3000) as u32).unwrap_or(' ');
                    text.extend(c.to_string().bytes());
                }
            }
            // Bytes that are not UTF-8.
            38 => text.extend(INVALID[random.below(INVALID.len())]),
            // A valid character cut short.
            _ => {
                let bytes = "é€😀你".as_bytes();
                let start = random.below(bytes.len());
                text.extend(&bytes[start..start + random.below(bytes.len() - start)]);
            }
        }
    }
    text.truncate(MIXED_TEXT_BYTES);
    text
}
