-- Tells HAProxy what a request goes by when like requests are to meet one cache (see balance.py):
-- its `prompt_cache_key`, or else the beginning of its conversation. That is the same for all turns
-- of a conversation, for a text as a string or in blocks, and for keys in any order. A body is read
-- no further than needed, and keys are found by name and kind of value: what stands deeper under
-- such a name can mislead it, which costs a place in a cache and nothing else.

local byte, find, match, sub = string.byte, string.find, string.match, string.sub
local QUOTE, BACKSLASH, BRACE, BRACKET = 34, 92, 123, 91

local MOST = 2048 -- bytes of a prompt that is no conversation, or of what is seen of a body
local KEYED = "prompt_cache_key="
local UNLIKE = "^x%-anthropic%-billing%-header" -- changes with each request; vLLM leaves it out

-- Where a string ends that begins before `at`; nil where that is beyond what is seen.
local function closing(body, at)
  while true do
    at = find(body, '"', at, true)
    if not at or byte(body, at - 1) ~= BACKSLASH then return at end
    local before = at - 2
    while byte(body, before) == BACKSLASH do before = before - 1 end
    if (at - before) % 2 == 1 then return at end
    at = at + 1
  end
end

-- What comes after the value at `at`.
local function after(body, at)
  local depth = 0
  local kind = byte(body, at)
  if kind ~= QUOTE and kind ~= BRACE and kind ~= BRACKET then
    return find(body, "[,%]}%s]", at)
  end
  repeat
    if kind == QUOTE then
      at = closing(body, at + 1)
    elseif kind == BRACE or kind == BRACKET then
      depth = depth + 1
    else
      depth = depth - 1
    end
    if not at or depth == 0 then return at and at + 1 end
    at = find(body, '["%[%]{}]', at + 1)
    kind = at and byte(body, at)
  until not at
end

-- The places of an array's values; what is not asked for is not read.
local function values(body, array)
  local at = array + 1
  local here
  return function()
    if here then at = after(body, here) end
    here = at and match(body, "^[%s,]*()[^%s,%]}]", at)
    return here
  end
end

-- The keys of an object, with the places of their values.
local function fields(body, object)
  local at = object + 1
  local key, here
  return function()
    if here then at = after(body, here) end
    if not at then return nil end
    key, here = match(body, '^[%s,]*"([^"]*)"%s*:%s*()', at)
    return key, here
  end
end

-- The place of the first value of this name and kind.
local function value(body, name, kind)
  local at = 1
  local last
  while true do
    at, last = find(body, name .. '"', at, true)
    if not at then return nil end
    if byte(body, at - 1) == QUOTE and byte(body, at - 2) ~= BACKSLASH then
      local found = match(body, "^%s*:%s*()" .. kind, last + 1)
      if found then return found end
    end
    at = last + 1
  end
end

-- The first `most` bytes of a text.
local function text(body, at, most)
  if byte(body, at) ~= QUOTE then return "" end
  local part = sub(body, at + 1, at + most)
  local last = closing(part, 1)
  part = last and sub(part, 1, last - 1) or part
  return find(part, UNLIKE) and "" or part
end

-- The beginning of a text, of its blocks, of several texts or of their tokens.
local function beginning(body, at, most)
  if byte(body, at) ~= BRACKET then return text(body, at, most) end
  local all = ""
  for here in values(body, at) do
    local kind = byte(body, here)
    if kind == BRACE then
      for key, place in fields(body, here) do
        if key == "text" then
          all = all .. text(body, place, most)
          break
        end
      end
    elseif kind == QUOTE then
      all = all .. text(body, here, most)
    else
      return sub(body, here, here + most)
    end
    if #all >= most then return sub(all, 1, most) end
  end
  return all
end

-- The beginnings of what is said up to the first turn that is not the system's, and whose is first.
local function turns(body, array, most)
  local all = ""
  local first
  for at in values(body, array) do
    if byte(body, at) ~= BRACE then break end
    local role, said
    for key, place in fields(body, at) do
      if key == "role" then role = text(body, place, most) end
      if key == "content" then said = beginning(body, place, most) end
      if role and said then break end
    end
    first = first or role
    all = all .. "\n" .. (said or "")
    if role ~= "system" and role ~= "developer" or #all > 4 * most then break end
  end
  return all, first
end

local function prefix(body, part)
  local most = tonumber(part)
  local key = value(body, "prompt_cache_key", '"[^"]')
  if key then return KEYED .. text(body, key, most) end
  local name = "system"
  local at = value(body, "messages", "%[")
  if not at then
    name = "instructions"
    at = value(body, "input", '["%[]')
  end
  if at and find(body, "^%[%s*{", at) then
    local all, first = turns(body, at, most)
    local own = first ~= "system" and value(body, name, '["%[]')
    return own and beginning(body, own, most) .. all or all
  end
  if at then
    local own = value(body, name, '"')
    return (own and text(body, own, most) or "") .. "\n" .. beginning(body, at, most)
  end
  at = value(body, "prompt", '["%[]') or value(body, "token_ids", "%[")
  if at then return beginning(body, at, math.min(most, MOST)) end
  -- The prompt is further back than HAProxy has read.
  return sub(body, value(body, "tools", "%[") or 1, MOST)
end

core.register_converters("raycluster_prefix", prefix)
