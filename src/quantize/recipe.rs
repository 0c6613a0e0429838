//! The mixes of types a whole model can be quantised to, by llama.cpp's names and numbers.

use ggml_ext::GgmlType;

macro_rules! recipes {
    ($($name:ident = $id:literal, $base:ident, $doc:literal;)*) => {
        /// What a file's matrices are quantised to (`general.file_type`): a type for most of them and, for some recipes, rules
        /// that give the matrices that matter most a better one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types)]
        #[non_exhaustive]
        pub enum Recipe { $(#[doc = $doc] $name,)* }

        impl Recipe {
            /// Every recipe, smallest files first.
            pub const ALL: &'static [Recipe] = &[$(Recipe::$name,)*];

            /// Its name, e.g. `Q4_K_M`.
            pub const fn name(self) -> &'static str {
                match self { $(Recipe::$name => stringify!($name),)* }
            }
            /// The number that `general.file_type` has.
            pub const fn id(self) -> u32 {
                match self { $(Recipe::$name => $id,)* }
            }
            /// The type of the matrices that no rule is about.
            pub const fn base(self) -> GgmlType {
                match self { $(Recipe::$name => GgmlType::$base,)* }
            }
            /// What it is, in a few words.
            pub const fn about(self) -> &'static str {
                match self { $(Recipe::$name => $doc,)* }
            }
        }
    };
}

recipes! {
    Q1_0 = 40, Q1_0, "1.1 bits a weight, for models trained to hold signs";
    IQ1_S = 24, IQ1_S, "1.6 bits, needs an importance matrix";
    TQ1_0 = 36, TQ1_0, "1.7 bits, for models trained to hold -1, 0 and 1";
    IQ1_M = 31, IQ1_M, "1.75 bits, needs an importance matrix";
    TQ2_0 = 37, TQ2_0, "2.1 bits, for models trained to hold -1, 0 and 1";
    IQ2_XXS = 19, IQ2_XXS, "2.1 bits, needs an importance matrix";
    Q2_0 = 41, Q2_0, "2.25 bits, for models trained to hold -1, 0 and 1";
    IQ2_XS = 20, IQ2_XS, "2.3 bits, needs an importance matrix";
    IQ2_S = 28, IQ2_XS, "2.3 bits, more where it matters, needs an importance matrix";
    IQ2_M = 29, IQ2_S, "2.6 bits, more where it matters, needs an importance matrix";
    Q2_K_S = 21, Q2_K, "2.6 bits, needs an importance matrix";
    Q2_K = 10, Q2_K, "2.6 bits, more where it matters";
    IQ3_XXS = 23, IQ3_XXS, "3.1 bits, needs an importance matrix";
    IQ3_XS = 22, IQ3_S, "3.4 bits, less where it matters little, needs an importance matrix";
    IQ3_S = 26, IQ3_S, "3.4 bits";
    IQ3_M = 27, IQ3_S, "3.4 bits, more where it matters";
    Q3_K_S = 11, Q3_K, "3.4 bits";
    Q3_K_M = 12, Q3_K, "3.4 bits, more where it matters";
    Q3_K_L = 13, Q3_K, "3.4 bits, still more where it matters";
    IQ4_XS = 30, IQ4_XS, "4.25 bits, levels closer together near zero";
    MXFP4_MOE = 38, MXFP4, "4.25 bits for experts, 8.5 for all else";
    IQ4_NL = 25, IQ4_NL, "4.5 bits, levels closer together near zero";
    Q4_0 = 2, Q4_0, "4.5 bits";
    Q4_K_S = 14, Q4_K, "4.5 bits";
    Q4_K_M = 15, Q4_K, "4.5 bits, more where it matters";
    Q4_1 = 3, Q4_1, "5 bits";
    Q5_0 = 8, Q5_0, "5.5 bits";
    Q5_K_S = 16, Q5_K, "5.5 bits";
    Q5_K_M = 17, Q5_K, "5.5 bits, more where it matters";
    Q5_1 = 9, Q5_1, "6 bits";
    Q6_K = 18, Q6_K, "6.6 bits";
    Q8_0 = 7, Q8_0, "8.5 bits";
    F16 = 1, F16, "16 bits, half precision";
    BF16 = 32, BF16, "16 bits, the range of single precision";
    F32 = 0, F32, "32 bits";
}

impl Recipe {
    /// The recipe of this name (in any case; `Q4_K` is `Q4_K_M`, and so on) or number.
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.to_ascii_uppercase();
        let name = match name.as_str() {
            "Q3_K" | "Q4_K" | "Q5_K" => format!("{name}_M"),
            _ => name,
        };
        let number = text.parse().ok();
        Self::ALL.iter().find(|r| r.name() == name || Some(r.id()) == number).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_aliases_and_numbers() {
        for (text, recipe) in
            [("q4_k_m", Recipe::Q4_K_M), ("Q4_K", Recipe::Q4_K_M), ("15", Recipe::Q4_K_M), ("0", Recipe::F32)]
        {
            assert_eq!(Recipe::parse(text), Some(recipe), "{text}");
        }
        for text in ["", "Q4", "Q4_K_L", "4", "-1", "model.gguf"] {
            assert_eq!(Recipe::parse(text), None, "{text}");
        }
        for &r in Recipe::ALL {
            assert_eq!((Recipe::parse(r.name()), Recipe::parse(&r.id().to_string())), (Some(r), Some(r)));
        }
    }
}
