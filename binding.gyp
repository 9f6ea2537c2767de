# The CPU-only build for machines without CMake: the folders and the ISA flags of CMakeLists.txt, one static library
# per ISA. test/architecture.test.ts holds the flags equal.
{
  "variables": {
    "kernel_sources": ["<!@(node -p \"['csrc/cpu/kernels'].flatMap((dir) => require('node:fs').readdirSync(dir, { recursive: true }).filter((name) => name.endsWith('.cc')).map((name) => dir + '/' + name)).join(' ')\")"],
    "host_sources": ["<!@(node -p \"['csrc/core', 'csrc/ops', 'csrc/napi'].flatMap((dir) => require('node:fs').readdirSync(dir, { recursive: true }).filter((name) => name.endsWith('.cc')).map((name) => dir + '/' + name)).join(' ')\")"],
    "warnings": ["-Wall", "-Wextra", "-Werror"],
    "kernel_flags": ["-O3", "-ffp-contract=off", "-fno-math-errno"],
    "isa_flags_base": ["-msse2", "-O2"],
    "isa_flags_avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "isa_flags_avx512": ["-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"],
  },
  "target_defaults": {
    "include_dirs": ["csrc"],
    "defines": ["BNB_CUDA=0", "NAPI_VERSION=8"],
    "cflags": ["-fPIC", "-fvisibility=hidden", "<@(warnings)"],
    "cflags_cc": ["-std=c++20", "-fvisibility-inlines-hidden"],
    "cflags_cc!": ["-std=gnu++17", "-std=gnu++20", "-fno-exceptions", "-fno-rtti"],
    "xcode_settings": {
      "CLANG_CXX_LANGUAGE_STANDARD": "c++20",
      "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
      "GCC_SYMBOLS_PRIVATE_EXTERN": "YES",
      "MACOSX_DEPLOYMENT_TARGET": "11.0",
    },
  },
  "targets": [
    {
      "target_name": "kernels_base",
      "type": "static_library",
      "sources": ["<@(kernel_sources)"],
      "defines": ["BNB_ISA=cpu_base", "BNB_ISA_LEVEL=0"],
      "conditions": [
        ["target_arch=='x64'", {
          "cflags_cc": ["<@(kernel_flags)", "<@(isa_flags_base)"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<@(kernel_flags)", "<@(isa_flags_base)"]},
        }, {
          "cflags_cc": ["<@(kernel_flags)"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<@(kernel_flags)"]},
        }],
      ],
    },
    {
      "target_name": "bitsandbytes",
      "sources": ["<@(host_sources)"],
      "include_dirs": [
        "<!(node -p \"require('node-api-headers').include_dir\")",
        "<!(node -p \"require('node-addon-api').include_dir\")",
      ],
      "cflags_cc": ["-O3"],
      "dependencies": ["kernels_base"],
      "conditions": [
        ["target_arch=='x64'", {"dependencies": ["kernels_avx2", "kernels_avx512"]}],
        ["OS=='linux'", {"ldflags": ["-static-libstdc++", "-static-libgcc", "-Wl,--as-needed", "-Wl,--gc-sections", "-Wl,--version-script=<(module_root_dir)/csrc/napi/exports.map"]}],
      ],
    },
  ],
  "conditions": [
    ["target_arch=='x64'", {
      "targets": [
        {
          "target_name": "kernels_avx2",
          "type": "static_library",
          "sources": ["<@(kernel_sources)"],
          "defines": ["BNB_ISA=cpu_avx2", "BNB_ISA_LEVEL=1"],
          "cflags_cc": ["<@(kernel_flags)", "<@(isa_flags_avx2)"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<@(kernel_flags)", "<@(isa_flags_avx2)"]},
        },
        {
          "target_name": "kernels_avx512",
          "type": "static_library",
          "sources": ["<@(kernel_sources)"],
          "defines": ["BNB_ISA=cpu_avx512", "BNB_ISA_LEVEL=2"],
          "cflags_cc": ["<@(kernel_flags)", "<@(isa_flags_avx512)"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<@(kernel_flags)", "<@(isa_flags_avx512)"]},
        },
      ],
    }],
  ],
}
