// The products of an element: on tiles where there are tiles for it, else on vectors. Attention
// calls linear_as itself: its products are small, and one of them is scaled by rows.

void linear(const LinearArgs& a) {
  switch (a.w.element) {
    case Element::kFloat32: return linear_as<Float32>(a);
#if defined(__AMX_TILE__)
    case Element::kBfloat16: return linear_amx<Bfloat16>(a);
    case Element::kInt8: return linear_amx<Int8>(a);
#else
    case Element::kBfloat16: return linear_as<Bfloat16>(a);
    case Element::kInt8: return linear_as<Int8>(a);
#endif
  }
}

int64_t spin(Element element, int64_t steps) {
#if defined(__AMX_TILE__)
  if (element == Element::kBfloat16) return spin_amx<Bfloat16>(steps);
  if (element == Element::kInt8) return spin_amx<Int8>(steps);
#endif
  if (element == Element::kFloat32) return spin_as<Float32>(steps);
  if (element == Element::kBfloat16) return spin_as<Bfloat16>(steps);
  return spin_as<Int8>(steps);
}
