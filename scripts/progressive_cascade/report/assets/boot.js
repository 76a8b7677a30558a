// SPDX-License-Identifier: Apache-2.0
document.documentElement.className = "js";
