import js from "@eslint/js";
import globals from "globals";

export default [
  { ignores: ["vendor/"] },
  js.configs.recommended,
  {
    languageOptions: { globals: { ...globals.browser } },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      eqeqeq: "error",
      "no-shadow": "error",
      "no-var": "error",
      "prefer-const": "error",
      "max-len": ["error", { code: 140 }],
    },
  },
];
